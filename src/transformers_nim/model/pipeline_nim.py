# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""`pipeline("image-classification")` with the options of the De^3 defense."""

from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image
from transformers.pipelines import ImageClassificationPipeline

from .certification import Certificate
from .configuration_nim import NIMConfig
from .image_processing_nim import check_image_processor, load_picture
from .modeling_nim import NIMForRobustImageClassification
from .noise import FROM_CONFIG, Sigma, parse_sigma
from .outputs_nim import RobustImageClassifierOutput


_UNSET: Any = object()
_CERTIFY_OPTIONS = ("n0", "n", "alpha", "sequential", "radius_tolerance", "target_radius")
_OPTIONS = {"sigma", "num_samples", "vote", "seed", "return_denoised", "certify", *_CERTIFY_OPTIONS}


def to_picture(pixel_values: torch.Tensor, config: NIMConfig) -> Image.Image:
    """Makes a PIL image from one normalized image of shape `(1 or 3 channels, height, width)`."""
    mean = torch.tensor(config.image_mean)[:, None, None]
    std = torch.tensor(config.image_std)[:, None, None]
    pixels = (pixel_values.to(torch.float32) * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy())


def _has_defense(model: Any) -> bool:
    # By name: from a checkpoint that carries its code, transformers loads this module and the model's own separately.
    return any(base.__name__ == NIMForRobustImageClassification.__name__ for base in type(model).__mro__)


class NIMImageClassificationPipeline(ImageClassificationPipeline):
    """Image classification with De^3.

    Every option of transformers' `ImageClassificationPipeline` works as it does there. These are added, for the
    construction of the pipeline and, taking precedence, for every call:

    Args:
        sigma (number, mapping, [`SigmaDistribution`] or `None`):
            Scale of the noise in units of 0..255 pixels; 0 denoises without adding noise, `None` switches the defense
            off, `"config"` is the model's own `defense_sigma` and the default.
        num_samples (`int`): Noise draws per image; the model's own number by default.
        vote (`"mean"` or `"majority"`): How draws are combined; the model's own way by default.
        seed (`int`):
            Makes predictions repeatable: an image's noise then depends on the seed alone, and not on its batch. All
            images get the same noise, so do not measure accuracies with it. Who knows the seed knows the noise.
        return_denoised (`bool`, defaults to `False`):
            Whether every answer has, as `"denoised"`, a PIL image of what the classifier saw in the first draw.
        certify (`bool`, defaults to `False`):
            Whether to vote under many noise draws and to certify the answer; see
            [`~NIMForRobustImageClassification.certify`]. Every picture then has a single answer with `"label"` (`None`
            where it abstains), `"score"` (the lower bound of the class's probability under noise), `"radius"` (L2 norm
            in pixels of [0, 1] of the image that the processor makes, which is resized) and `"certificate"` (a
            [`Certificate`]). `num_samples`, `vote`, `return_denoised`, `top_k` and `function_to_apply` do not apply.
        n0, n, alpha, sequential, radius_tolerance, target_radius:
            Options of certificates, as for [`~NIMForRobustImageClassification.certify`]; without `certify` they do
            nothing.

    Raises:
        ValueError: An option is out of range, or the image processor does not fit the model.

    A pipeline of any other model is an instance of the class that transformers would have used.

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

    # What pipelines of other models are made of.
    fallback: ClassVar[type] = ImageClassificationPipeline

    def __new__(cls, *args: Any, **kwargs: Any):
        model = kwargs.get("model", args[0] if args else None)
        # Without a model this is a copy of a pipeline being made.
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
        if num_samples is not None and (type(num_samples) is not int or num_samples < 1):
            raise ValueError(f"num_samples must be an int of at least 1, got {num_samples!r}")
        if vote not in (None, "mean", "majority"):
            raise ValueError(f'vote must be "mean" or "majority", got {vote!r}')
        if seed is not _UNSET and seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
            raise ValueError(f"seed must be an int of at least 0, got {seed!r}")
        if return_denoised not in (None, False, True) or type(return_denoised) is int:
            raise ValueError(f"return_denoised must be True or False, got {return_denoised!r}")
        if certify not in (None, False, True) or type(certify) is int:
            raise ValueError(f"certify must be True or False, got {certify!r}")
        if certify and (num_samples is not None or vote is not None or return_denoised):
            raise ValueError(
                "certify=True votes under n0 + n noise draws: leave out num_samples, vote and return_denoised"
            )
        options = {name: kwargs.pop(name) for name in _CERTIFY_OPTIONS if name in kwargs}
        preprocess, _, postprocess = super()._sanitize_parameters(**kwargs)
        forward: dict[str, Any] = {"num_samples": num_samples, "vote": vote, "return_denoised": return_denoised}
        forward |= {"certify": certify}
        forward = {name: value for name, value in forward.items() if value is not None}
        # None has a meaning for these two.
        forward |= {name: value for name, value in (("sigma", sigma), ("seed", seed)) if value is not _UNSET}
        forward |= options
        return preprocess, forward, postprocess

    def get_iterator(self, *args, **kwargs):
        iterator = super().get_iterator(*args, **kwargs)
        # A DataLoader draws a seed for its workers, by default from the global generator.
        iterator.loader.loader.generator = torch.Generator()
        return iterator

    def preprocess(self, image, timeout=None):  # type: ignore[override]
        if not isinstance(image, (np.ndarray, torch.Tensor)):
            image = load_picture(image, timeout=timeout)
        return self.image_processor(images=image, return_tensors="pt").to(self.dtype)  # type: ignore[misc]

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
        )
        seen = None
        if return_denoised:
            denoised = outputs.denoised_pixel_values
            seen = pixel_values if denoised is None else denoised[:, 0]
        return RobustImageClassifierOutput(logits=outputs.logits, denoised_pixel_values=seen)

    def postprocess(self, model_outputs, function_to_apply=None, top_k=5):  # type: ignore[override]
        if "certificates" in model_outputs:
            return [self._certified_answer(model_outputs["certificates"])]
        answers = super().postprocess(model_outputs, function_to_apply=function_to_apply, top_k=top_k)
        if model_outputs.get("denoised_pixel_values") is not None:
            picture = to_picture(model_outputs["denoised_pixel_values"][0], self.config)
            answers = [{**answer, "denoised": picture} for answer in answers]
        return answers

    def _certified_answer(self, certificates: Certificate | list[Certificate]) -> dict[str, Any]:
        # transformers takes batches of several images apart, and leaves those of one as they are.
        (certificate,) = certificates if isinstance(certificates, list) else [certificates]
        id2label = cast(dict[int, str], self.config.id2label)
        return {
            "label": None if certificate.abstained else id2label[certificate.label],
            "score": certificate.p_lower,
            "radius": certificate.radius,
            "certificate": certificate,
        }


__all__ = ["NIMImageClassificationPipeline"]
