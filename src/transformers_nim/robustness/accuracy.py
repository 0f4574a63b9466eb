# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Classify images several times, each time under fresh noise."""

from collections.abc import Callable

import numpy as np
import torch

from ..attacks.geometry import class_numbers
from ..model.outputs_nim import answers
from ..model.pixel_classifier_nim import PixelClassifier
from ..utils.seeding import derive_seed, forked_rng, image_generators, image_seeds
from ..utils.text_table import plural


@torch.no_grad()
def correct_draws(
    classifier: Callable[[torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    labels: torch.Tensor,
    num_draws: int = 8,
    batch_size: int = 256,
    seed: int = 0,
) -> np.ndarray:
    """Return correctness per image and noise draw, shape `(images, draws)`.

    Args:
        classifier: Maps pixels in [0, 1] of shape `(batch, channels, height, width)` to logits; see
            [`PixelClassifier`].
        pixels: The images.
        labels: True classes, integers of shape `(images,)`.
        num_draws: Predictions per image, each under fresh noise.
        batch_size: Images per pass.
        seed: Seed of the noise. An attack with the same seed draws other noise. The global random state is left as it
            was.

    Raises:
        FloatingPointError: Logits are NaN.
        ValueError: Labels have another shape or type, or one is none of the classes.
    """
    labels = class_numbers(labels, len(pixels), getattr(classifier, "num_classes", None))
    columns = []
    seeds = image_seeds(derive_seed(seed, "evaluation"), len(pixels))
    generators = image_generators(seeds, "evaluation", pixels.device)

    def predict(start: int) -> torch.Tensor:
        batch = pixels[start : start + batch_size]
        if isinstance(classifier, PixelClassifier):
            return answers(classifier(batch, generators[start : start + batch_size]))
        return answers(classifier(batch))

    with forked_rng(pixels.device):
        # For classifiers whose noise comes from the global state.
        torch.manual_seed(derive_seed(seed, "evaluation"))
        for _ in range(num_draws):
            chosen = torch.cat([predict(start) for start in range(0, len(pixels), batch_size)])
            if bool((chosen < 0).any()):
                raise FloatingPointError(
                    f"the classifier's logits are NaN for {plural(int((chosen < 0).sum()), 'image')} of {len(pixels)}:"
                    " it gives no answer there; check its weights and its precision"
                )
            columns.append((chosen == labels).cpu().numpy())
    return np.stack(columns, axis=1)
