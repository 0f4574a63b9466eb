# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""NIM model configuration."""

import functools
import math
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME, auto_docstring

from .checks_nim import check_counts
from .noise import parse_sigma, warn_of_sigma


_IMAGENET_MEAN = [0.485, 0.456, 0.406]
_IMAGENET_STD = [0.229, 0.224, 0.225]
_SIGMA_FIELDS = ("pretraining_sigma", "finetuning_sigma", "defense_sigma")
_POSITIVE_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "decoder_hidden_size",
    "decoder_num_hidden_layers", "decoder_num_attention_heads", "decoder_intermediate_size", "num_channels",
    "num_samples", "layer_norm_eps",
)  # fmt: skip
# Far above any model, and low enough that a wrong number neither hangs nor eats the memory.
_MAXIMA = {
    "hidden_size": 2**16, "num_hidden_layers": 1000, "num_attention_heads": 2**12, "intermediate_size": 2**18,
    "decoder_hidden_size": 2**16, "decoder_num_hidden_layers": 1000, "decoder_num_attention_heads": 2**12,
    "decoder_intermediate_size": 2**18, "num_channels": 2**10, "image_size": 2**14, "patch_size": 2**14,
    "num_samples": 2**20, "num_labels": 2**20, "layer_norm_eps": 1, "initializer_range": 100,
}  # fmt: skip
_MAX_PATCHES = 2**16
_MAX_PARAMETERS = 3 * 10**10
_CLASSIFIER_INPUT = {"image_mean", "image_std", "size", "resample", "bgr"}
# Fields of `config.json` that name Python files beside it.
_CODE_FIELDS = ("auto_map", "custom_pipelines")
_PROBABILITY_FIELDS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")

_SIZE_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size", "decoder_hidden_size",
    "decoder_num_hidden_layers", "decoder_num_attention_heads",
)  # fmt: skip
# Values of these fields. The first five sizes are the paper's (base to huge are MAE's, arXiv 2111.06377). The last two
# are for 32-pixel images such as CIFAR-10.
NIM_SIZES: dict[str, tuple[int, int, int, int, int, int, int, int]] = {
    "tiny": (192, 12, 3, 16, 224, 512, 8, 16),
    "small": (384, 12, 6, 16, 224, 512, 8, 16),
    "base": (768, 12, 12, 16, 224, 512, 8, 16),
    "large": (1024, 24, 16, 16, 224, 512, 8, 16),
    "huge": (1280, 32, 16, 14, 224, 512, 8, 16),
    "tiny-patch4-32": (192, 6, 3, 4, 32, 128, 2, 4),
    "tiny-patch8-32": (256, 4, 4, 8, 32, 128, 2, 4),
}


class NIMConfigError(StrictDataclassError, ValueError):
    """A wrong configuration value: a ValueError, and the error of other strict configs of transformers."""


def _check_given(given: dict[str, Any]) -> None:
    """Check values before transformers builds labels, lists and types of them.

    Raises:
        ValueError: A value is too large, or has the wrong type.
    """
    check_counts(num_labels=given.get("num_labels", 1) or 0)
    for name, most in _MAXIMA.items():
        value = given.get(name)
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, (int, float)) and number > most:
                raise ValueError(f"{name} must be at most {most}, got {value}")
    labels = given.get("id2label")
    if labels is not None:
        is_mapping = isinstance(labels, Mapping) and 0 < len(labels) <= _MAXIMA["num_labels"]
        if not is_mapping or {str(key) for key in labels} != set(map(str, range(len(labels)))):
            raise ValueError(f"id2label must map the numbers 0, 1, ... to the names of classes, got {_short(labels)}")
        if not all(isinstance(label, (str, int)) for label in labels.values()):
            raise ValueError(f"the names of classes in id2label must be texts, got {_short(labels)}")
    if not isinstance(given.get("label2id"), Mapping | None):
        raise ValueError(f"label2id must map the names of classes to their numbers, got {_short(given['label2id'])}")
    architectures = given.get("architectures")
    if architectures and not (isinstance(architectures, list) and all(isinstance(a, str) for a in architectures)):
        raise ValueError(f"architectures must be a list of names of classes, got {_short(architectures)}")
    for name in ("dtype", "torch_dtype"):
        dtype = given.get(name)
        known = getattr(torch, str(dtype).removeprefix("torch."), None)
        if dtype not in (None, "auto") and not isinstance(known, torch.dtype):
            raise ValueError(f'{name} must be a type of torch such as "float32", got {_short(dtype)}')
    problem = given.get("problem_type")
    if problem not in (None, "regression", "single_label_classification", "multi_label_classification"):
        raise ValueError(
            'problem_type must be "regression", "single_label_classification" or "multi_label_classification", got'
            f" {_short(problem)}"
        )
    for name in ("return_dict", "output_hidden_states", "output_attentions"):
        if not isinstance(given.get(name), bool | None):
            raise ValueError(f"{name} must be true or false, got {_short(given[name])}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _raises_value_errors(cls):
    """Turn the errors of `@strict` into ValueErrors, which they are not in huggingface_hub."""

    def convert(name, method):
        @functools.wraps(method)
        def wrapper(self, *args, **kwargs):
            try:
                _check_given(dict([args]) if name == "__setattr__" else kwargs)
                return method(self, *args, **kwargs)
            except (StrictDataclassError, ValueError) as error:
                if isinstance(error, NIMConfigError):
                    raise
                # Without the frame of several lines that `@strict` puts around it.
                is_frame = isinstance(error, StrictDataclassError) and error.__cause__ is not None
                raise NIMConfigError(" ".join(str(error.__cause__ if is_frame else error).split())) from error

        return wrapper

    for name in ("__init__", "__setattr__", "validate"):
        setattr(cls, name, convert(name, getattr(cls, name)))
    return cls


@_raises_value_errors
@auto_docstring(
    custom_intro="""
    The configuration of [`NIMModel`], [`NIMForPreTraining`], [`NIMForImageClassification`] and
    [`NIMForRobustImageClassification`]. The defaults are the paper's ViT-B/16 (arXiv 2302.01056).
    """,
    checkpoint="nim-vit-base",
)
@strict
class NIMConfig(PreTrainedConfig):
    r"""
    hidden_size (`int`, *optional*, defaults to 768):
        Width of the encoder.
    num_hidden_layers (`int`, *optional*, defaults to 12):
        Number of transformer layers in the encoder.
    num_attention_heads (`int`, *optional*, defaults to 12):
        Number of attention heads in each encoder layer.
    intermediate_size (`int`, *optional*, defaults to 3072):
        Width of the feed-forward layers of the encoder.
    hidden_act (`str`, *optional*, defaults to `"gelu"`):
        Activation of the feed-forward layers.
    hidden_dropout_prob (`float`, *optional*, defaults to 0.0):
        Dropout after embeddings, attention and feed-forward layers.
    initializer_range (`float`, *optional*, defaults to 0.02):
        Standard deviation of a new CLS token. Matrices are initialized by Xavier's uniform rule, as in MAE.
    image_size (`int` or `(int, int)`, *optional*, defaults to 224):
        Height and width of the images in pixels.
    patch_size (`int` or `(int, int)`, *optional*, defaults to 16):
        Height and width of a patch in pixels; they must divide those of the image.
    num_channels (`int`, *optional*, defaults to 3):
        Number of image channels.
    drop_path_rate (`float`, *optional*, defaults to 0.0):
        Stochastic depth of the last layer of a classifier's encoder. It rises linearly from 0 in the first layer. The
        paper fine-tunes with 0.1 (huge: 0.2). Pretraining uses none.
    decoder_hidden_size (`int`, *optional*, defaults to 512):
        Width of the decoder.
    decoder_num_hidden_layers (`int`, *optional*, defaults to 8):
        Number of transformer layers in the decoder.
    decoder_num_attention_heads (`int`, *optional*, defaults to 16):
        Number of attention heads in each decoder layer.
    decoder_intermediate_size (`int`, *optional*, defaults to 2048):
        Width of the feed-forward layers of the decoder.
    norm_pix_loss (`bool`, *optional*, defaults to `False`):
        Whether the decoder predicts patches normalized by their own mean and standard deviation. The authors'
        released models use `True`.
    patch_statistics (`"noisy"` or `"input"`, *optional*, defaults to `"noisy"`):
        With `norm_pix_loss`, which mean and standard deviation denormalize a predicted patch: those estimated from
        the noisy image, or those of the image before noise was added (the authors' way). With `"input"`, brightness
        and contrast of every patch bypass the noise, so such a model cannot be certified.
    denoise (`bool`, *optional*, defaults to `True`):
        Whether [`NIMForRobustImageClassification`] denoises the noisy image. `False` makes a model without a denoiser,
        which classifies the noisy image itself (randomized smoothing): the baseline that shows what denoising adds.
    freeze_denoiser (`bool`, *optional*, defaults to `True`):
        Whether the denoiser of [`NIMForRobustImageClassification`] stays frozen and in eval mode while the classifier
        is trained, as in the paper. `False` trains it along.
    image_mean (`list[float]`, *optional*, defaults to ImageNet's for 3 channels, else 0.5):
        Mean of each channel, subtracted from pixels in [0, 1]. The image processor must use the same.
    image_std (`list[float]`, *optional*, defaults to ImageNet's for 3 channels, else 0.5):
        Standard deviation of each channel, by which pixels are divided. The image processor must use the same.
    pretraining_sigma (number or mapping, *optional*, defaults to gamma with concentration 25 and scale 3):
        Noise scale of pretraining in units of 0..255 pixels, drawn for each image. A number or a distribution:
        `{"type": "constant", "value": 70}`, `{"type": "gamma", "concentration": 25, "scale": 3}`,
        `{"type": "uniform", "low": 0, "high": 30}`, or one added with `register_sigma_distribution`.
    finetuning_sigma (number, mapping or `None`, *optional*, defaults to uniform from 0 to 30):
        Noise scale in train mode of [`NIMForRobustImageClassification`]. `None` fine-tunes without the defense.
    defense_sigma (number, mapping or `None`, *optional*, defaults to 70):
        Noise scale in eval mode of [`NIMForRobustImageClassification`]. `None` switches the defense off.
    num_samples (`int`, *optional*, defaults to 1):
        Noise draws per image that [`NIMForRobustImageClassification`] combines into a prediction in eval mode.
    vote (`"mean"` or `"majority"`, *optional*, defaults to `"mean"`):
        How draws are combined: by mean probability, or by the number of draws that chose a class.
    classifier_config (`dict`, *optional*):
        Config of the classifier behind the denoiser, if it is a model of another kind: its own `config.json` without
        the labels, which are those of this config. `None` means a NIM encoder with a linear head.
        [`~NIMForRobustImageClassification.from_denoiser`] fills this field and the next.
    classifier_input (`dict`, *optional*):
        The input of such a classifier: `image_mean` and `image_std` (of pixels in [0, 1]), `size` (height and width in
        pixels to which denoised images are resized), `resample` (`"bilinear"` or `"bicubic"`) and `bgr` (whether
        channels are ordered blue, green, red).

    Raises:
        ValueError: A value has the wrong type or is out of range; the message names it.

    Example:

    ```python
    >>> from transformers_nim import NIMConfig, NIMForPreTraining

    >>> config = NIMConfig.from_size("tiny-patch4-32", num_labels=10)
    >>> model = NIMForPreTraining(config)
    >>> model.config.image_size
    32
    ```"""

    model_type = "nim"
    # A Trainer would gather the pictures of a whole evaluation set.
    keys_to_ignore_at_inference = ["denoised_pixel_values", "noisy_pixel_values", "sigma"]

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-6
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    norm_pix_loss: bool = False
    patch_statistics: Literal["noisy", "input"] = "noisy"
    denoise: bool = True
    freeze_denoiser: bool = True
    image_mean: list[float | int] | tuple[float | int, ...] = ()
    image_std: list[float | int] | tuple[float | int, ...] = ()
    pretraining_sigma: Any = field(default_factory=lambda: {"type": "gamma", "concentration": 25.0, "scale": 3.0})
    finetuning_sigma: Any = field(default_factory=lambda: {"type": "uniform", "low": 0.0, "high": 30.0})
    defense_sigma: Any = field(default_factory=lambda: {"type": "constant", "value": 70.0})
    num_samples: int = 1
    vote: Literal["mean", "majority"] = "mean"
    classifier_config: dict[str, Any] | None = None
    classifier_input: dict[str, Any] | None = None

    @property
    def leaks_patch_statistics(self) -> bool:
        """Tell whether mean and standard deviation of every patch of the image reach the output past the noise."""
        return self.denoise and self.norm_pix_loss and self.patch_statistics == "input"

    def __setattr__(self, key: str, value: Any) -> None:
        # Numbers become mappings, so that a saved config is explicit. Later assignments are parsed too.
        if key in _SIGMA_FIELDS and (value is not None or key == "pretraining_sigma"):
            try:
                warn_of_sigma(value)
                value = parse_sigma(value).to_dict()
            except ValueError as error:
                raise NIMConfigError(f"{key}: {error}") from error
        super().__setattr__(key, value)

    def __post_init__(self, **kwargs):
        # Lists, as in JSON, so that a config equals its reloaded self.
        for name in ("image_size", "patch_size"):
            if isinstance(getattr(self, name), tuple):
                setattr(self, name, list(getattr(self, name)))
        # Only images of three channels have customary statistics.
        is_rgb = self.num_channels == 3
        self.image_mean = list(self.image_mean or (_IMAGENET_MEAN if is_rgb else [0.5] * self.num_channels))
        self.image_std = list(self.image_std or (_IMAGENET_STD if is_rgb else [0.5] * self.num_channels))
        # AutoModelForImageClassification.from_config iterates over it to choose between our two classifiers.
        self.architectures = self.architectures or []
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Read `config.json`, as in transformers, and check that it holds fields.

        Raises:
            OSError: There is no such file, or it holds no JSON object.
        """
        try:
            content, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
            if isinstance(content, dict):
                return content, unused
        except (TypeError, AttributeError):
            pass
        raise OSError(f"the config of {pretrained_model_name_or_path} is no JSON object of fields and values")

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """Make a config from a dictionary, as in transformers, and check values that override the saved ones too.

        Raises:
            ValueError: A value has the wrong type or is out of range.
        """
        if not __name__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}."):
            # Where this package is installed, a model that is saved again refers to no code beside it.
            config_dict = {name: value for name, value in config_dict.items() if name not in _CODE_FIELDS}
        loaded = super().from_dict(config_dict, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).validate()
        return loaded

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> "NIMConfig":
        """Return the config of a named size.

        Args:
            size: One of `"tiny"`, `"small"`, `"base"`, `"large"`, `"huge"` (224-pixel images), `"tiny-patch4-32"` or
                `"tiny-patch8-32"` (32-pixel images).
            overrides: Further fields of the config.

        Raises:
            ValueError: The size is unknown or a field has a wrong value.
        """
        if size not in NIM_SIZES:
            raise ValueError(f"unknown size {size!r}; known: {sorted(NIM_SIZES)}")
        fields: dict[str, Any] = dict(zip(_SIZE_FIELDS, NIM_SIZES[size]))
        for prefix in ("", "decoder_"):
            fields[f"{prefix}intermediate_size"] = 4 * fields[f"{prefix}hidden_size"]
        return cls(**{**fields, **overrides})

    @property
    def image_shape(self) -> tuple[int, int]:
        """Return height and width of the images in pixels."""
        return _pair(self.image_size)

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Return height and width of a patch in pixels."""
        return _pair(self.patch_size)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Return rows and columns of patches in an image."""
        (height, width), (patch_height, patch_width) = self.image_shape, self.patch_shape
        return height // patch_height, width // patch_width

    def validate_numbers(self):
        """Check that every number is in its range. `@strict` calls each `validate_...`."""
        for name in _POSITIVE_FIELDS:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive, got {value}")
        for name in _PROBABILITY_FIELDS:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and less than 1, got {getattr(self, name)}")
        if not (math.isfinite(self.initializer_range) and self.initializer_range >= 0):
            raise ValueError(f"initializer_range must be finite and at least 0, got {self.initializer_range}")

    def validate_choices(self):
        """Check that the activation exists, and that sigmas changed in place are still valid."""
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act must be one of {sorted(ACT2FN)}, got {self.hidden_act!r}")
        for name in _SIGMA_FIELDS:
            setattr(self, name, getattr(self, name))

    def validate_patches(self):
        """Check that patches tile the image."""
        for name in ("image_size", "patch_size"):
            value = getattr(self, name)
            if len(_pair(value)) != 2 or any(isinstance(v, bool) or v <= 0 for v in _pair(value)):
                raise ValueError(f"{name} must be a positive int or a pair of them (height, width), got {value}")
        if math.prod(self.patch_grid) > _MAX_PATCHES:
            raise ValueError(f"an image may have {_MAX_PATCHES} patches, got {math.prod(self.patch_grid)}")
        if any(image % patch for image, patch in zip(self.image_shape, self.patch_shape)):
            raise ValueError(f"patch_size {self.patch_size} must divide image_size {self.image_size}")

    def validate_widths(self):
        """Check that widths fit the attention heads and the sine-cosine position embeddings."""
        for prefix in ("", "decoder_"):
            width, heads = getattr(self, f"{prefix}hidden_size"), getattr(self, f"{prefix}num_attention_heads")
            if width % heads:
                raise ValueError(f"{prefix}hidden_size {width} must be a multiple of its {heads} attention heads")
            if width % 4:
                raise ValueError(f"{prefix}hidden_size {width} must be a multiple of 4 for its position embeddings")
        self._check_parameters()

    def _check_parameters(self) -> None:
        pixels = self.num_channels * math.prod(self.patch_shape)
        number: int = self.hidden_size * self.num_labels  # type: ignore[operator]
        for prefix in ("", "decoder_"):
            width, hidden = getattr(self, f"{prefix}hidden_size"), getattr(self, f"{prefix}intermediate_size")
            layer = width * (4 * width + 2 * hidden)
            number += getattr(self, f"{prefix}num_hidden_layers") * layer + width * (
                pixels + math.prod(self.patch_grid)
            )
        if number > _MAX_PARAMETERS:
            raise ValueError(f"a model may have {_MAX_PARAMETERS:,} parameters, this one would have {number:,}")

    def validate_image_statistics(self):
        """Check that each channel has a mean and a positive standard deviation."""
        self._check_statistics({"image_mean": self.image_mean, "image_std": self.image_std})

    def validate_classifier(self):
        """Check that a classifier of another kind is described completely."""
        config, given = self.classifier_config, self.classifier_input
        if config is None and given is None:
            return
        if config is None or given is None:
            raise ValueError(
                "classifier_config and classifier_input belong together, as"
                " NIMForRobustImageClassification.from_denoiser makes them; one of them is None"
            )
        if not self.denoise:
            raise ValueError("denoise=False is for NIM's own classifier; classifier_config needs a denoiser")
        if not isinstance(config.get("model_type"), str):
            raise ValueError(f"classifier_config must name its model_type, got {config.get('model_type')!r}")
        if given.keys() != _CLASSIFIER_INPUT:
            raise ValueError(f"classifier_input must have {sorted(_CLASSIFIER_INPUT)}, got {sorted(given)}")
        _check_size(config, "classifier_config")
        self._check_statistics(given, "classifier_input: ")
        size = given["size"]
        if not isinstance(size, (list, tuple)) or len(size) != 2 or any(type(v) is not int or v < 1 for v in size):
            raise ValueError(f"classifier_input: size must be two positive ints (height, width), got {size!r}")
        if given["resample"] not in ("bilinear", "bicubic"):
            raise ValueError(f'classifier_input: resample must be "bilinear" or "bicubic", got {given["resample"]!r}')
        if type(given["bgr"]) is not bool or (given["bgr"] and self.num_channels != 3):
            raise ValueError(f"classifier_input: bgr must be False, or True for 3 channels, got {given['bgr']!r}")

    def _check_statistics(self, given: dict[str, Any], prefix: str = "") -> None:
        for name in ("image_mean", "image_std"):
            value = given[name]
            if not isinstance(value, (list, tuple)) or len(value) != self.num_channels:
                raise ValueError(
                    f"{prefix}{name} must have one value for each of {self.num_channels} channels, got {value}"
                )
            # They are of pixels in [0, 1]; those of a classifier of another kind may be of any unit.
            low = 1e-6 if name == "image_std" else -1e6
            if not all(isinstance(v, (int, float)) and low <= v <= 1e6 for v in value):
                positive = " and positive" if name == "image_std" else ""
                raise ValueError(f"{prefix}{name} must be finite{positive}, from {low:g} to 1e+06, got {value}")


def _check_size(value: Any, name: str) -> None:
    """Check the numbers in the config of a classifier of another kind, whose fields are not known.

    Raises:
        ValueError: One of them would make a model that fills the memory.
    """
    own = name.rpartition(".")[2]
    most = _MAXIMA.get(own, 1000 if "layers" in own or "depth" in own else 2**20)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_size(inner, f"{name}.{key}")
        width, depth = value.get("hidden_size"), value.get("num_hidden_layers")
        if isinstance(width, int) and isinstance(depth, int) and 4 * depth * width**2 > _MAX_PARAMETERS:
            raise ValueError(
                f"{name}: a model may have {_MAX_PARAMETERS:,} parameters, {depth} layers of width {width} have more"
            )
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_size(inner, name)
    elif isinstance(value, int) and value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")


def _pair(size: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)  # type: ignore[return-value]


__all__ = ["NIM_SIZES", "NIMConfig", "NIMConfigError"]
