# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Any image classifier behind the denoiser: a ConvNeXt, Swin, ResNet, ViT or timm model that someone else has trained.

This module describes such a classifier in a [`NIMConfig`], builds it from the description, and gives it denoised
images in its own size and normalization. Both are measured by giving its image processor pictures of one color.
"""

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
from transformers.utils import logging

from .configuration_nim import NIMConfig
from .layers_nim import check_image_shape
from .pixels_nim import normalize, to_pixels


logger = logging.get_logger(__name__)

# Fields of a classifier's config that the outer config holds, or that do not describe the model.
_NOT_OF_THE_CLASSIFIER = {"auto_map", "dtype", "id2label", "label2id", "label_names", "num_classes", "torch_dtype"}
_NOT_OF_THE_CLASSIFIER |= {"_name_or_path", "problem_type", "return_dict", "transformers_version"}
_RESAMPLE = {None: "bicubic", 2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}
# With this margin, float32 rounding does not push white pixels to where clamping has no gradient.
_PIXEL_TOLERANCE = 1e-5


class OtherClassifierMixin:
    """A classifier whose encoder and head may be replaced by a model of another kind, `classifier_model`."""

    config: NIMConfig
    classifier_model: PreTrainedModel

    def _make_classifier(self, config: NIMConfig) -> None:
        if config.classifier_config is None:
            super()._make_classifier(config)  # type: ignore[misc]
        else:
            self.classifier_model = make_classifier(config)
            self.supports_gradient_checkpointing = self.classifier_model.supports_gradient_checkpointing

    @classmethod
    def _with_other_classifier(cls, config: NIMConfig, denoiser: PreTrainedModel, classifier: PreTrainedModel):
        """Build a model from copies of both, in eval mode.

        Raises:
            ValueError: The classifier's weights, input size or labels do not fit its description.
        """
        # The weights drawn here are replaced; the global generator must not notice.
        with torch.random.fork_rng(devices=[]):
            model: Any = cls(config)  # type: ignore[call-arg]
        model.denoiser.load_state_dict(denoiser.state_dict())
        try:
            model.classifier_model.load_state_dict(classifier.state_dict())
        except RuntimeError as error:
            raise ValueError(f"the classifier's weights do not fit its config: {error}") from error
        model = model.to(denoiser.device, denoiser.dtype).eval()
        example = torch.zeros(1, config.num_channels, *config.image_shape, device=denoiser.device)
        try:
            with torch.no_grad():
                logits = model(example, sigma=None).logits
        except (RuntimeError, ValueError, AssertionError) as error:
            given: dict[str, Any] = config.classifier_input  # type: ignore[assignment]
            raise ValueError(
                f"the classifier ({classifier.config.model_type}) cannot take images of size {given['size']}, which"
                f" its image processor makes: {error}"
            ) from error
        if logits.shape != (1, config.num_labels):
            raise ValueError(
                f"the classifier has {config.num_labels} labels but gives logits of {tuple(logits.shape)}"
            )
        return model

    def _classify(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool, **kwargs: Any
    ) -> tuple[BaseModelOutput, torch.Tensor]:
        if self.config.classifier_config is None:
            return super()._classify(pixel_values, interpolate_pos_encoding, **kwargs)  # type: ignore[misc]
        check_image_shape(self.config, pixel_values, interpolate_pos_encoding)
        # Not all models accept all of transformers' keyword arguments.
        wanted = {name: value for name, value in kwargs.items() if name.startswith("output_") and value}
        seen = to_classifier_input(pixel_values, self.config).to(self.classifier_model.dtype)
        outputs = self.classifier_model(seen, return_dict=True, **wanted)
        states = BaseModelOutput(
            hidden_states=getattr(outputs, "hidden_states", None), attentions=getattr(outputs, "attentions", None)
        )
        return states, outputs.logits

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        if self.config.classifier_config is None:
            super()._set_gradient_checkpointing(*args, **kwargs)  # type: ignore[misc]
        else:
            self.classifier_model._set_gradient_checkpointing(*args, **kwargs)


def to_classifier_input(pixel_values: torch.Tensor, config: NIMConfig) -> torch.Tensor:
    """Convert denoised images to the input of the classifier. Gradients flow through.

    Args:
        pixel_values: Images of shape `(batch, channels, height, width)`: pixels in [0, 1], normalized by
            `config.image_mean` and `config.image_std`.
        config: Config whose `classifier_input` describes the classifier's input.

    Returns:
        Float32 images in the classifier's size and normalization. They are resized without a crop.
    """
    given: dict[str, Any] = config.classifier_input  # type: ignore[assignment]
    pixels = to_pixels(pixel_values.to(torch.float32), config.image_mean, config.image_std)
    if pixels.shape[-2:] != tuple(given["size"]):
        pixels = nn.functional.interpolate(pixels, tuple(given["size"]), mode=given["resample"], antialias=True)
        if given["resample"] == "bicubic":  # which overshoots at edges
            pixels = pixels.clamp(-_PIXEL_TOLERANCE, 1 + _PIXEL_TOLERANCE)
    if given["bgr"]:
        pixels = pixels.flip(1)
    return normalize(pixels, given["image_mean"], given["image_std"])


def make_classifier(config: NIMConfig) -> PreTrainedModel:
    """Build the classifier that `config.classifier_config` describes, with new weights.

    Raises:
        ValueError: This release of transformers does not know such models.
    """
    values: dict[str, Any] = copy.deepcopy(config.classifier_config)  # type: ignore[arg-type]
    model_type = values.pop("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"this release of transformers knows no models of type {model_type!r}, which the classifier is; use a"
            " newer one, or import the package that registers them with AutoConfig"
        )
    labels = {"num_labels": config.num_labels, "id2label": config.id2label, "label2id": config.label2id}
    theirs = CONFIG_MAPPING[model_type].from_dict(values, **copy.deepcopy(labels))
    if config._attn_implementation == "eager":
        # Other attention kernels are left to the classifier, which may not support them.
        theirs._attn_implementation = "eager"
    return AutoModelForImageClassification.from_config(
        theirs, trust_remote_code=False, dtype=torch.get_default_dtype()
    )


def is_nim_checkpoint(name_or_path: str | os.PathLike) -> bool:
    """Tell whether a folder or repository of the Hub holds a NIM model."""
    return AutoConfig.from_pretrained(os.fspath(name_or_path), trust_remote_code=False).model_type == "nim"


def load_classifier(classifier: nn.Module | str | os.PathLike) -> PreTrainedModel:
    """Return an image classifier of transformers.

    Args:
        classifier: A model of transformers or timm, or the name or path of a checkpoint.

    Raises:
        ValueError: It is no image classifier, or has no trained head.
        OSError: There is no such checkpoint.
    """
    if isinstance(classifier, (str, os.PathLike)):
        name = os.fspath(classifier)
        loaded, info = AutoModelForImageClassification.from_pretrained(
            name, trust_remote_code=False, output_loading_info=True
        )
        check_trained(name, loaded, info)
        return loaded
    if isinstance(classifier, nn.Module) and isinstance(getattr(classifier, "pretrained_cfg", None), Mapping):
        classifier = _wrap_timm_model(classifier)
    known: Any = ()
    if isinstance(classifier, PreTrainedModel) and type(classifier.config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        known = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(classifier.config)]
    if type(classifier) not in (known if isinstance(known, tuple) else (known,)):
        raise ValueError(
            f"the classifier must be a model that AutoModelForImageClassification can load, a timm model, or a name or"
            f" path of one; got a {type(classifier).__name__}"
        )
    return classifier  # type: ignore[return-value]


def load_image_processor(name_or_path: str, **source: Any) -> Any:
    """Return the image processor of a checkpoint. Code from the Hub is not run.

    Args:
        name_or_path: A folder or a repository of the Hub.
        source: `cache_dir`, `token` and `revision`.

    Raises:
        OSError: There is none.
        ValueError: It is of no known class.
    """
    try:
        return AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=False, **source)
    except RecursionError as error:
        # The Auto class would look for itself for ever.
        raise ValueError(
            f"the image processor of {name_or_path} is of no class: image_processor_type in its"
            ' preprocessor_config.json is "AutoImageProcessor"; name the class, such as "ViTImageProcessor"'
        ) from error


def check_trained(name: str, model: nn.Module, info: Mapping[str, Any]) -> None:
    """Check that a checkpoint has all weights of an image classifier.

    Args:
        name: Name or path of the checkpoint.
        model: What was loaded.
        info: What `from_pretrained` returns with `output_loading_info=True`.

    Raises:
        ValueError: Weights are new and random.
    """
    # These buffers are learned. Others are computed from the config.
    learned = dict(model.named_parameters()).keys() | {
        key for key in model.state_dict() if key.endswith((".running_mean", ".running_var"))
    }
    new = sorted(set(info["missing_keys"]) & learned)
    if new:
        raise ValueError(f"{name} is no trained image classifier: it has no weights for {new[:3]}")


def describe_classifier(model: PreTrainedModel, image_processor: Any, config: NIMConfig) -> dict[str, Any]:
    """Return the fields of a [`NIMConfig`] that describe a classifier and its input.

    Args:
        model: The classifier.
        image_processor: Its image processor. By default that of its checkpoint; if there is none, the model's config
            must hold normalization and size.
        config: Config of the denoiser.

    Raises:
        ValueError: The classifier takes another number of channels than the denoiser, its normalization is unknown, or
            its image processor does more than resize, crop, scale and shift.
    """
    values = {k: v for k, v in model.config.to_diff_dict().items() if k not in _NOT_OF_THE_CLASSIFIER}
    values |= {"model_type": model.config.model_type, "architectures": [type(model).__name__]}
    channels = getattr(model.config, "num_channels", config.num_channels)
    if channels != config.num_channels:
        raise ValueError(f"the denoiser's images have {config.num_channels} channels, the classifier's {channels}")
    if image_processor is None and model.config.name_or_path:
        try:
            # From the same commit, if the model came from one.
            image_processor = load_image_processor(
                model.config.name_or_path, revision=getattr(model.config, "_commit_hash", None) or "main"
            )
        except (OSError, ValueError) as error:
            logger.info(f"{model.config.name_or_path} has no image processor: {error}")
    if image_processor is not None:
        given = measure_image_processor(image_processor, config)
    else:
        given = _input_from_config(model.config, config)
    return {
        "classifier_config": values,
        "classifier_input": given,
        "id2label": model.config.id2label,
        "label2id": model.config.label2id,
        "problem_type": model.config.problem_type,
    }


def measure_image_processor(image_processor: Callable[..., Any], config: NIMConfig) -> dict[str, Any]:
    """Measure what an image processor makes of denoised images, as `classifier_input` describes it.

    It is given pictures of one color in the size of the denoised images. So every image processor can be measured,
    however it stores its settings. A center crop does not show on them and is ignored: the denoiser's image processor
    has already cropped the picture.

    Args:
        image_processor: An image processor of transformers: PIL images in, normalized pixels out.
        config: Config of the denoiser.

    Raises:
        ValueError: It pads, gives another number of channels than the denoiser's, or does more to values than scale
            and shift.
    """
    if config.num_channels not in (1, 3):
        raise ValueError(f"classifiers of other kinds take images of 1 or 3 channels, not {config.num_channels}")
    name, all_channels = type(image_processor).__name__, config.num_channels
    black, size = _process_color(image_processor, config, *[0] * all_channels)
    white, between = (_process_color(image_processor, config, *[value] * all_channels)[0] for value in (255, 51))
    span = white - black
    if (span <= 0).any() or not np.allclose(between, black + 0.2 * span, atol=1e-4 * span.max()):
        raise ValueError(
            f"{name} maps black, dark grey and white to {black.tolist()}, {between.tolist()} and {white.tolist()},"
            " which is no scale and shift per channel"
        )
    bgr = False
    if all_channels == 3:
        red = (_process_color(image_processor, config, 255, 0, 0)[0] - black) / span
        bgr = bool(red[2] > 0.5)
        if not np.allclose(red, [0, 0, 1] if bgr else [1, 0, 0], atol=1e-3):
            raise ValueError(f"{name} mixes colors: of red it makes {red.tolist()}")
    mean, std = -black / span + 0.0, 1 / span  # no -0.0
    # These are measured in float32; the image processor's own numbers are exact.
    for own, measured in (("image_mean", mean), ("image_std", std)):
        written = np.ravel(getattr(image_processor, own, None) or [])
        if written.shape == measured.shape and np.allclose(written, measured, atol=1e-5):
            measured[:] = written
    if getattr(image_processor, "do_center_crop", False):
        logger.info(f"the center crop of {name} is left out: denoised images are resized as a whole")
    resample: Any = getattr(image_processor, "resample", None)
    if isinstance(getattr(image_processor, "data_config", None), Mapping):  # timm's
        resample = image_processor.data_config.get("interpolation")  # type: ignore[attr-defined]
    return {
        "image_mean": mean.tolist(),
        "image_std": std.tolist(),
        "size": size,
        "resample": _resample(resample),
        "bgr": bgr,
    }


def _process_color(
    image_processor: Callable[..., Any], config: NIMConfig, *color: int
) -> tuple[np.ndarray, list[int]]:
    """Process a picture of one color, and return the value of each channel and the size that it gets.

    Raises:
        ValueError: The picture cannot be processed, or does not stay of one color.
    """
    height, width = config.image_shape
    name = type(image_processor).__name__
    picture = Image.new("RGB" if config.num_channels == 3 else "L", (width, height), color)
    try:
        values = np.asarray(image_processor(picture, return_tensors="pt")["pixel_values"], dtype=np.float64)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"{name} cannot process a picture of {config.num_channels} channels and {height}x{width} pixels:"
            f" {error}. Pass another as classifier_image_processor"
        ) from error
    if values.ndim != 4 or values.shape[1] != config.num_channels:
        raise ValueError(
            f"{name} makes an array of shape {values.shape} from a picture; it must be"
            f" (1, {config.num_channels}, height, width)"
        )
    if np.ptp(values, axis=(2, 3)).max() > 1e-3:
        raise ValueError(
            f"{name} makes no even image from a picture of one color: it pads or adds something, which cannot be"
            " done to denoised images. Pass a classifier_image_processor that only resizes and normalizes"
        )
    return values.mean(axis=(0, 2, 3)), list(values.shape[2:])


def _resample(theirs: Any) -> str:
    """Return the resampling of denoised images for a name or number of Pillow or timm."""
    if theirs not in _RESAMPLE:
        logger.warning(f"the classifier's images are resized by {theirs!r}; denoised ones will be by bicubic")
    return _RESAMPLE.get(theirs, "bicubic")


def _input_from_config(theirs: Any, config: NIMConfig) -> dict[str, Any]:
    """Return `classifier_input` from the config of a classifier that has no image processor."""
    timm = getattr(theirs, "pretrained_cfg", None) or {}
    mean = getattr(theirs, "image_mean", None) or timm.get("mean")
    std = getattr(theirs, "image_std", None) or timm.get("std")
    if mean is None or std is None:
        raise ValueError(
            f"the normalization of the classifier ({theirs.model_type}) is not known: neither the place it was loaded"
            " from has an image processor, nor does its config say. Pass classifier_image_processor=, for example"
            " AutoImageProcessor.from_pretrained(...) or ViTImageProcessor(image_mean=..., image_std=..., size=...)"
        )
    size = (getattr(theirs, "model_args", None) or {}).get("img_size") or getattr(theirs, "image_size", None)
    size = size or timm.get("input_size", [None, *config.image_shape])[1:]
    resample = _resample(timm.get("interpolation"))
    size = [size, size] if isinstance(size, int) else list(size)
    return {"image_mean": list(mean), "image_std": list(std), "size": size, "resample": resample, "bgr": False}


def _wrap_timm_model(model: Any) -> PreTrainedModel:
    """Wrap a model of timm's `create_model` as a model of transformers, with copied weights.

    Raises:
        ValueError: It has no head, or was created with arguments that cannot be recovered from it.
    """
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    pretrained: dict[str, Any] = {k: list(v) if isinstance(v, tuple) else v for k, v in model.pretrained_cfg.items()}
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    arguments = None
    if size is not None and list(size) != pretrained["input_size"][1:]:
        arguments = {"img_size": list(size)}
        pretrained["input_size"] = [pretrained["input_size"][0], *size]
    if not model.num_classes:
        raise ValueError(f"the timm model {pretrained['architecture']} has no classification head (num_classes=0)")
    settings: dict[str, Any] = {"model_args": arguments, "num_labels": model.num_classes}
    config = TimmWrapperConfig(architecture=pretrained["architecture"], **settings)
    config.pretrained_cfg = pretrained
    config.num_channels = pretrained["input_size"][0]
    wrapper = TimmWrapperForImageClassification(config)
    try:
        wrapper.timm_model.load_state_dict(model.state_dict())
        wrapper.eval().to(next(model.parameters()))
        example = torch.rand(1, *pretrained["input_size"]).to(next(model.parameters()))
        was_training = model.training
        with torch.no_grad():
            is_same = torch.allclose(model.eval()(example), wrapper(example).logits, atol=1e-4)
        model.train(was_training)
    except RuntimeError as error:
        logger.info(f"the weights of the timm model do not fit: {error}")
        is_same = False
    if not is_same:
        raise ValueError(
            f"the timm model is not what create_model({pretrained['architecture']!r}) makes, so it was created with"
            " further arguments. Pass a TimmWrapperForImageClassification instead, with the arguments as model_args in"
            " its TimmWrapperConfig"
        )
    return wrapper


__all__ = [
    "OtherClassifierMixin",
    "check_trained",
    "describe_classifier",
    "is_nim_checkpoint",
    "load_classifier",
    "load_image_processor",
    "make_classifier",
    "measure_image_processor",
    "to_classifier_input",
]
