# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Accuracy of classifiers whose predictions are random, with its uncertainty."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..attacks.adapter import PixelClassifier
from ..attacks.randomness import derive_seed, forked_rng, image_generators, image_seeds


# Resampled images that are held at once.
_MAX_RESAMPLED = 4_000_000


@dataclass(frozen=True)
class Accuracy:
    """A mean accuracy over images and noise draws, all numbers in [0, 1].

    Attributes:
        mean: The accuracy.
        low: Lower end of its interval.
        high: Upper end of its interval.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:5.1f} [{100 * self.low:5.1f}, {100 * self.high:5.1f}]"


@torch.no_grad()
def correct_draws(
    classifier: Callable[[torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    labels: torch.Tensor,
    num_draws: int = 8,
    batch_size: int = 256,
    seed: int = 0,
) -> np.ndarray:
    """Whether each of several predictions of each image, every one under fresh noise, is right.

    Args:
        classifier: Maps pixels in [0, 1] of shape `(batch, channels, height, width)` to logits; see
            [`PixelClassifier`].
        pixels: The images.
        labels: True classes, shape `(images,)`.
        num_draws: Predictions of each image.
        batch_size: How many images pass through the classifier at once.
        seed: Seed of the noise, which differs from that of an attack with the same number. The global random state is
            left as it was.

    Returns:
        Booleans of shape `(images, num_draws)`.
    """
    columns = []
    seeds = image_seeds(derive_seed(seed, "evaluation"), len(pixels))
    generators = image_generators(seeds, "evaluation", pixels.device)

    def predict(start: int) -> torch.Tensor:
        batch = pixels[start : start + batch_size]
        if isinstance(classifier, PixelClassifier):
            return classifier(batch, generators[start : start + batch_size]).argmax(dim=-1)
        return classifier(batch).argmax(dim=-1)

    with forked_rng(pixels.device):
        # For classifiers whose noise comes from the global state.
        torch.manual_seed(derive_seed(seed, "evaluation"))
        for _ in range(num_draws):
            chosen = torch.cat([predict(start) for start in range(0, len(pixels), batch_size)])
            columns.append((chosen == labels).cpu().numpy())
    return np.stack(columns, axis=1)


def mean_accuracy(correct: np.ndarray, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0) -> Accuracy:
    """Mean accuracy with a bootstrap interval over images and draws.

    Images are resampled, and within each the draws. Where every answer is right, or every one wrong, resampling sees
    no variation, and the interval is Wilson's for as many images. It says nothing of how training would vary.

    Args:
        correct: Booleans of shape `(images, draws)`, from [`correct_draws`].
        confidence: Probability that the interval is meant to cover.
        num_resamples: Bootstrap samples.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: There are no images.
    """
    num_images, num_draws = correct.shape
    if num_images == 0:
        raise ValueError("an accuracy needs at least one image")
    rng = np.random.default_rng(seed)
    # For each resampled image the number of right answers among as many resampled draws is binomial.
    share = correct.mean(axis=1)
    # In chunks: an array of all resamples of a large validation set does not fit into memory.
    chunk = max(1, _MAX_RESAMPLED // num_images)
    sizes = [min(chunk, num_resamples - start) for start in range(0, num_resamples, chunk)]
    picked = (share[rng.integers(num_images, size=(size, num_images))] for size in sizes)
    means = np.concatenate([rng.binomial(num_draws, part).mean(axis=1) / num_draws for part in picked])
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    if correct.all() or not correct.any():
        low, high = wilson_interval(float(share.mean()), num_images, confidence)
    mean = float(share.mean())
    # Rounding can put the end of an interval on the wrong side of its middle.
    return Accuracy(mean, min(float(low), mean), max(float(high), mean))


def wilson_interval(share: float, num_images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of independent images."""
    z = float(torch.special.ndtri(torch.tensor((1 + confidence) / 2, dtype=torch.float64)))
    center = (share + z**2 / (2 * num_images)) / (1 + z**2 / num_images)
    half = z / (1 + z**2 / num_images) * np.sqrt(share * (1 - share) / num_images + z**2 / (4 * num_images**2))
    return max(0.0, float(center - half)), min(1.0, float(center + half))
