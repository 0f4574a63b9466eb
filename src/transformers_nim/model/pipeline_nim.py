# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""`pipeline("image-classification")` with the options of the De^3 defense."""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image
from transformers.pipelines import ImageClassificationPipeline

from .certification import Certificate
from .checks_nim import check_counts, check_vote
from .configuration_nim import NIMConfig
from .image_processing_nim import (
    array_to_picture,
    check_image_processor,
    convert_image,
    load_picture,
    read_array,
    reads_arrays,
)
from .modeling_nim import NIMForRobustImageClassification
from .noise import FROM_CONFIG, Sigma, parse_sigma
from .outputs_nim import RobustImageClassifierOutput
from .pixels_nim import to_pixels


_UNSET: Any = object()
_CERTIFY_OPTIONS = ("n0", "n", "alpha", "sequential", "radius_tolerance", "target_radius")
_OPTIONS = {"sigma", "num_samples", "vote", "seed", "return_denoised", "certify", *_CERTIFY_OPTIONS}

# Of the construction of a pipeline; they do not reach `_sanitize_parameters`.
_PIPELINE_ARGUMENTS = {"batch_size", "device", "device_map", "dtype", "image_processor", "model", "num_workers"}


def to_picture(pixel_values: torch.Tensor, config: NIMConfig) -> Image.Image:
    """Convert one normalized image of shape `(1 or 3 channels, height, width)` to a PIL image."""
    pixels = to_pixels(pixel_values.to(torch.float32), config.image_mean, config.image_std)
    pixels = pixels.clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy())


def _has_defense(model: Any) -> bool:
    # Not by type: PEFT and torch.compile wrap a model and pass its attributes on, and transformers loads the modules
    # of a checkpoint that carries its code more than once.
    return callable(getattr(model, "classify_noisy", None))


def _check_names(options: dict[str, Any], theirs: Callable) -> None:
    """Refuse options that neither this pipeline nor transformers' own function knows, and say what may be meant."""
    own = inspect.signature(theirs).parameters.keys()
    known = sorted({*_OPTIONS, *own, *_PIPELINE_ARGUMENTS})
    for name in sorted(options.keys() - own):
        nearest = get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"
        if name in _PIPELINE_ARGUMENTS:
            hint = "it belongs to the construction of the pipeline"
        raise TypeError(f"the pipeline has no option {name!r} here; {hint}")


class NIMImageClassificationPipeline(ImageClassificationPipeline):
    """Image classification with De^3.

    All options of transformers' `ImageClassificationPipeline` work. The model may be wrapped by PEFT or
    `torch.compile`. These options are added, for the construction of the pipeline and for every call, which takes
    precedence:

    Args:
        sigma (number, mapping, [`SigmaDistribution`] or `None`):
            Scale of the noise in units of 0..255 pixels. 0 denoises without adding noise, `None` switches the defense
            off, and `"config"`, the default, is the model's `defense_sigma`.
        num_samples (`int`): Noise draws per image; the config's by default.
        vote (`"mean"` or `"majority"`): How draws are combined; the config's by default.
        seed (`int`):
            Makes predictions repeatable: an image's noise depends on the seed alone, not on its batch. All images get
            the same noise, so do not measure accuracy with a seed. Whoever knows the seed knows the noise.
        return_denoised (`bool`, defaults to `False`):
            Whether every answer has, as `"denoised"`, a PIL image of what the classifier saw in the first draw.
        certify (`bool`, defaults to `False`):
            Whether to vote under many noise draws and certify the answer; see
            [`~NIMForRobustImageClassification.certify`]. Every picture then has one answer with `"label"` (`None` if
            it abstains), `"score"` (lower bound of the class's probability under noise), `"radius"` (L2 norm, pixels
            in [0, 1] of the image from the image processor, which is resized) and `"certificate"` (a
            [`Certificate`]). `num_samples`, `vote`, `return_denoised`, `top_k` and `function_to_apply` do not apply.
        n0, n, alpha, sequential, radius_tolerance, target_radius:
            Options of [`~NIMForRobustImageClassification.certify`]. Without `certify` they do nothing.

    Pictures are PIL images, paths, http(s) URLs, base64 texts or arrays, of which [`NIMImageProcessor`] states the
    rule: integers of 0..255 or floating-point values in [0, 1], in any layout. An array of four dimensions is answered
    as the list of its pictures. A URL may take 30 seconds, or `timeout`.

    Raises:
        ValueError: An option is out of range, the image processor does not fit the model, or a picture is refused.
        OSError: A file or URL cannot be read, or is no picture; the message names it.
        TypeError: There is no option of this name.
        FloatingPointError: The model's answer is infinite or NaN.

    For any other model, this class makes the pipeline that transformers would have made.

    Example:

    ```python
    >>> from PIL import Image
    >>> from transformers import pipeline
    >>> from transformers_nim import NIMConfig, NIMForRobustImageClassification, NIMImageProcessor

    >>> model = NIMForRobustImageClassification(NIMConfig.from_size("tiny-patch4-32", num_labels=10))
    >>> processor = NIMImageProcessor.from_config(model.config)
    >>> pipe = pipeline("image-classification", model=model, image_processor=processor, sigma=25, seed=0)
    >>> len(pipe(Image.new("RGB", (40, 40)), top_k=3, num_samples=4))
    3
    ```"""

    # The pipeline class of other models.
    fallback: ClassVar[type] = ImageClassificationPipeline

    def __new__(cls, *args: Any, **kwargs: Any):
        model = kwargs.get("model", args[0] if args else None)
        # A pipeline that is being copied has no model yet.
        if model is None or _has_defense(model):
            return super().__new__(cls)
        ours = kwargs.keys() & _OPTIONS
        if ours:
            raise ValueError(f"{sorted(ours)} need a NIMForRobustImageClassification, got {type(model).__name__}")
        return cls.fallback(*args, **kwargs)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.config: NIMConfig = self.model.config  # type: ignore[assignment]
        check_image_processor(self.image_processor, self.config)

    def _sanitize_parameters(  # type: ignore[override]
        self,
        sigma: Sigma | str = _UNSET,
        num_samples: int | None = None,
        vote: str | None = None,
        seed: int | None = _UNSET,
        return_denoised: bool | None = None,
        certify: bool | None = None,
        **kwargs: Any,
    ):
        if sigma is not _UNSET and sigma is not None and not (isinstance(sigma, str) and sigma == FROM_CONFIG):
            parse_sigma(sigma)  # type: ignore[arg-type]
        check_counts(num_samples=num_samples)
        check_vote(vote)
        if seed is not _UNSET and seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
            raise ValueError(f"seed must be an int of at least 0, got {seed!r}")
        for name, value in (("return_denoised", return_denoised), ("certify", certify)):
            if not isinstance(value, bool | None):
                raise ValueError(f"{name} must be True or False, got {value!r}")
        if certify and (num_samples is not None or vote is not None or return_denoised):
            raise ValueError(
                "certify=True votes under n0 + n noise draws: leave out num_samples, vote and return_denoised"
            )
        options = {name: kwargs.pop(name) for name in _CERTIFY_OPTIONS if name in kwargs}
        _check_names(kwargs, super()._sanitize_parameters)
        preprocess, _, postprocess = super()._sanitize_parameters(**kwargs)
        given = {"num_samples": num_samples, "vote": vote, "return_denoised": return_denoised, "certify": certify}
        forward = {name: value for name, value in given.items() if value is not None} | options
        # None has a meaning for these two.
        forward |= {name: value for name, value in (("sigma", sigma), ("seed", seed)) if value is not _UNSET}
        return preprocess, forward, postprocess

    def check_model_type(self, supported_models):
        """Accept every model that `__new__` has let through; transformers would warn of a wrapped one."""

    def get_iterator(self, *args, **kwargs):
        iterator = super().get_iterator(*args, **kwargs)
        # By default a DataLoader draws a seed for its workers from the global generator.
        iterator.loader.loader.generator = torch.Generator()
        return iterator

    def __call__(self, inputs=None, *args, **kwargs):
        inputs = kwargs.pop("images", inputs)
        if isinstance(inputs, (np.ndarray, torch.Tensor)) and inputs.ndim == 4:
            inputs = list(inputs)
        if isinstance(inputs, (list, tuple)) and not inputs:
            return []
        return super().__call__(inputs, *args, **kwargs)

    def preprocess(self, image, timeout=None):  # type: ignore[override]
        num_channels = self.config.num_channels
        options: dict[str, Any] = {"return_tensors": "pt"}
        if isinstance(image, (np.ndarray, torch.Tensor)):
            image = read_array(image, num_channels)
            if reads_arrays(self.image_processor):
                options["input_data_format"] = "channels_first"
            else:
                image = array_to_picture(image, "channels_first")
        else:
            image = load_picture(image, timeout=timeout)
        if isinstance(image, Image.Image):
            image = convert_image(image, num_channels)
        return self.image_processor(images=image, **options).to(self.dtype)  # type: ignore[misc]

    def _forward(  # type: ignore[override]
        self,
        model_inputs,
        sigma=FROM_CONFIG,
        num_samples=None,
        vote=None,
        seed=None,
        return_denoised=False,
        certify=False,
        **options,
    ):
        pixel_values = model_inputs["pixel_values"]
        generators = None
        if seed is not None:
            generators = [torch.Generator().manual_seed(seed) for _ in range(len(pixel_values))]
        if certify:
            model = cast(NIMForRobustImageClassification, self.model)
            return {"certificates": model.certify(pixel_values, sigma, generator=generators, **options)}
        outputs = self.model(
            pixel_values,
            sigma=sigma,
            num_samples=num_samples,
            vote=vote,
            generator=generators,
            output_draws=return_denoised,
            return_dict=True,
        )
        seen = None
        if return_denoised:
            denoised = outputs.denoised_pixel_values
            seen = pixel_values if denoised is None else denoised[:, 0]
        return RobustImageClassifierOutput(logits=outputs.logits, denoised_pixel_values=seen)

    def postprocess(self, model_outputs, function_to_apply=None, top_k=5):  # type: ignore[override]
        if "certificates" in model_outputs:
            return [self._certified_answer(model_outputs["certificates"])]
        logits = model_outputs["logits"]
        # Classes without votes have -inf.
        if not bool(logits.amax(dim=-1).isfinite().all()):
            raise FloatingPointError(
                f"the model returned logits that are infinite or NaN, in {logits.dtype}; try float32 or bfloat16, and"
                " check the weights"
            )
        answers = super().postprocess(model_outputs, function_to_apply=function_to_apply, top_k=top_k)
        if model_outputs.get("denoised_pixel_values") is not None:
            picture = to_picture(model_outputs["denoised_pixel_values"][0], self.config)
            answers = [{**answer, "denoised": picture} for answer in answers]
        return answers

    def _certified_answer(self, certificates: Certificate | list[Certificate]) -> dict[str, Any]:
        # transformers splits batches of several images, but not those of one.
        (certificate,) = certificates if isinstance(certificates, list) else [certificates]
        id2label = cast(dict[int, str], self.config.id2label)
        return {
            "label": None if certificate.abstained else id2label[certificate.label],
            "score": certificate.p_lower,
            "radius": certificate.radius,
            "certificate": certificate,
        }


__all__ = ["NIMImageClassificationPipeline"]
