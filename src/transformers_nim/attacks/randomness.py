# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Ask a classifier whose answers may be random for logits."""

from collections.abc import Callable, Sequence

import torch


# Pixels of shape (batch, channels, height, width) in [0, 1] to logits of shape (batch, classes).
Classifier = Callable[[torch.Tensor], torch.Tensor]


def is_deterministic(classifier: Classifier) -> bool:
    """Whether a classifier says of itself that equal pixels always get equal logits; see [`PixelClassifier`]."""
    return bool(getattr(classifier, "is_deterministic", False))


def draw_logits(
    classifier: Classifier, pixels: torch.Tensor, num_draws: int, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Asks a classifier for several answers to each image, in one pass.

    Args:
        classifier: A [`PixelClassifier`], or another module with its `draw_logits`, takes its noise from `generators`.
            Of any other callable every image is asked `num_draws` times in one batch; where its noise comes from is
            its own affair.
        pixels: Images of shape `(batch, channels, height, width)` in [0, 1].
        num_draws: Answers per image.
        generators: One for each image.

    Returns:
        Logits of shape `(batch, num_draws, classes)`, or `(batch, 1, classes)` if answers do not vary.
    """
    own = getattr(classifier, "draw_logits", None)
    if own is not None:
        return own(pixels, num_draws, generators)
    if is_deterministic(classifier):
        num_draws = 1
    return classifier(pixels.repeat_interleave(num_draws, dim=0)).unflatten(0, (-1, num_draws))
