# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Load a classifier and hand it to attacks at any sigma."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.modeling_utils import PreTrainedModel

from ..attacks.randomness import Classifier
from ..model.configuration_nim import NIMConfig
from ..model.image_processing_nim import NIMImageProcessor
from ..model.pixel_classifier_nim import PixelClassifier


# Arguments: sigma in units of 0..255 pixels (None: defense off), gradient mode, and whether the noise is fixed.
MakeClassifier = Callable[[float | None, str, bool], Classifier]


def load_with_processor(name_or_path: str, device: torch.device, **source: Any) -> tuple[PreTrainedModel, Any]:
    """Load any image classifier of transformers, in eval mode and float32, and its image processor.

    Args:
        name_or_path: A folder or a repository on the Hub.
        device: Where the model goes.
        source: `cache_dir`, `token` and `revision`.
    """
    model = AutoModelForImageClassification.from_pretrained(name_or_path, dtype=torch.float32, **source)
    if isinstance(model.config, NIMConfig):
        return model.to(device).eval(), NIMImageProcessor.from_config(model.config)
    return model.to(device).eval(), AutoImageProcessor.from_pretrained(name_or_path, **source)


def has_defense(model: PreTrainedModel) -> bool:
    """Return whether a model adds noise and denoises before it classifies."""
    return hasattr(model.config, "defense_sigma") and hasattr(model, "denoiser")


def classifier_maker(
    model: PreTrainedModel,
    image_processor: Any,
    seed: int,
    autocast_dtype: torch.dtype | None = None,
    num_samples: int = 1,
    vote: str = "mean",
) -> Callable[[float | None, str, bool], PixelClassifier]:
    """Return a function that makes a [`PixelClassifier`] of a model for a sigma.

    Args:
        model: An image classifier of transformers in eval mode.
        image_processor: Its image processor, for the normalization.
        seed: Seed of the fixed noise.
        autocast_dtype: See [`PixelClassifier`].
        num_samples: Noise draws that a prediction combines.
        vote: How it combines them, `"mean"` or `"majority"`.
    """
    common = {"image_processor": image_processor, "seed": seed, "autocast_dtype": autocast_dtype}

    def make(sigma: float | None, gradient: str = "full", fixed_noise: bool = False) -> PixelClassifier:
        if not has_defense(model):
            if sigma is not None:
                raise ValueError(f"{type(model).__name__} has no defense, so sigma must be None, got {sigma!r}")
            return PixelClassifier(model, **common)
        return PixelClassifier(
            model,
            sigma=sigma,
            gradient=gradient,
            fixed_noise=fixed_noise,
            num_samples=num_samples,
            vote=vote,
            **common,
        )

    return make


def model_hash(model: PreTrainedModel) -> str:
    """Return a hash of weights and config, which tells whether a run continues with the same model."""
    # Fields at their defaults are left out: a new version of transformers may add some, and the hash must not change.
    config = model.config.to_diff_dict()
    # Written when a model is saved, or when its code is put beside it.
    for name in ("_name_or_path", "transformers_version", "architectures", "dtype", "auto_map", "custom_pipelines"):
        config.pop(name, None)
    # Fields that recorded results are older than; at these values the model is the same.
    for name, value in (("denoise", True), ("freeze_denoiser", True)):
        if config.get(name) is value:
            del config[name]
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
