# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Logits of a classifier whose answers may be random."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model.pixel_classifier_nim import Generators


# Pixels of shape (batch, channels, height, width) in [0, 1] to logits of shape (batch, classes).
Classifier = Callable[[Tensor], Tensor]


def is_deterministic(classifier: Classifier) -> bool:
    """Return whether a classifier says that equal pixels always get equal logits; see [`PixelClassifier`]."""
    return bool(getattr(classifier, "is_deterministic", False))


@dataclass(frozen=True)
class InHalf:
    """A classifier of images in half precision that an attack gives images in float32."""

    classifier: Classifier
    dtype: torch.dtype

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.classifier(pixels.to(self.dtype))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.classifier, name)


def draw_logits(classifier: Classifier, pixels: Tensor, num_draws: int, generators: Generators) -> Tensor:
    """Return a classifier's logits for several noise draws, in one pass.

    Args:
        classifier: A [`PixelClassifier`], or another object with its `draw_logits`, takes its noise from `generators`.
            Any other callable gets every image `num_draws` times in one batch, and draws its own noise.
        pixels: Images in [0, 1], shape `(batch, channels, height, width)`.
        num_draws: Draws per image.
        generators: One random generator per image.

    Returns:
        Logits, shape `(batch, num_draws, classes)`; `(batch, 1, classes)` if the classifier is deterministic.
    """
    own = getattr(classifier, "draw_logits", None)
    if own is not None:
        return own(pixels, num_draws, generators)
    if is_deterministic(classifier):
        num_draws = 1
    return classifier(pixels.repeat_interleave(num_draws, dim=0)).unflatten(0, (-1, num_draws))
