# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Adversarial images to train on (Madry et al., arXiv 1706.06083)."""

from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from ..attacks import PixelClassifier, eot_pgd


def adversarial_images(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    labels: torch.Tensor,
    eps: float,
    steps: int,
    step_size: float | None = None,
    seed: int = 0,
    **forward_kwargs: Any,
) -> torch.Tensor:
    """PGD on a batch of training images, with a fresh noise draw of the defense in every step.

    The model is attacked in eval mode (no dropout, no stochastic depth) and left in the mode that it was in.

    Args:
        model: The classifier to attack, and to train.
        pixel_values: Normalized images, shape `(batch, channels, height, width)`. What augmentation has brought
            outside of [0, 1] is clamped: an attack is measured on pixels.
        labels: Classes or their probabilities.
        eps: Radius of the Linf ball in x/255.
        steps: Steps of PGD.
        step_size: Length of a step in x/255; `2.5 * eps / steps` by default.
        seed: Seed of start and noise.
        forward_kwargs: Arguments of the model's forward, such as `sigma`.

    Returns:
        Normalized adversarial images.

    Raises:
        ValueError: An argument is out of range.
    """
    if not 0 < eps <= 255 or steps < 1 or (step_size is not None and step_size <= 0):
        raise ValueError(
            f"adversarial training needs 0 < eps <= 255, at least 1 step and a positive step size (all in x/255), got"
            f" {eps}, {steps} and {step_size}"
        )
    was_training = model.training
    model.eval()
    try:
        classifier = PixelClassifier(model, **forward_kwargs)
        adversarial = eot_pgd(
            classifier,
            classifier.to_pixels(pixel_values.float()).clamp(0, 1),
            labels,
            eps=eps / 255,
            steps=steps,
            step_size=None if step_size is None else step_size / 255,
            num_draws=1,
            keep_best=False,
            batch_size=len(pixel_values),
            seed=seed,
            losses=("ce",),
            restarts=1,
        )
    finally:
        model.train(was_training)
    return classifier.normalize(adversarial)
