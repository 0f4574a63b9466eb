# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Accuracies of classifiers whose predictions are random, and of certified ones, with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .text_table import percent


# Resampled images in memory at once.
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
        return percent(self.mean, self.low, self.high)


@dataclass(frozen=True)
class Difference:
    """A difference of two accuracies, all numbers in [-1, 1].

    Attributes:
        mean: The difference.
        low: Lower end of its interval.
        high: Upper end of its interval.
    """

    mean: float
    low: float
    high: float

    @property
    def includes_zero(self) -> bool:
        """Tell whether the two accuracies cannot be told apart."""
        return self.low <= 0 <= self.high

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def mean_accuracy(correct: np.ndarray, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0) -> Accuracy:
    """Return the mean accuracy with a bootstrap interval over images and draws.

    Images are resampled, and within each image its draws. If all answers are right, or all wrong, resampling sees no
    variation, and the interval is Wilson's for as many images. The variation of training is not part of it.

    Args:
        correct: Correctness per image and noise draw, shape `(images, draws)`; see [`correct_draws`].
        confidence: Coverage of the interval, in (0, 1).
        num_resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: There are no images.
    """
    if len(correct) == 0:
        raise ValueError("an accuracy needs at least one image")
    mean = float(correct.mean(axis=1).mean())
    if correct.all() or not correct.any():
        low, high = wilson_interval(mean, len(correct), confidence)
    else:
        (means,) = _resampled_means([correct], num_resamples, seed)
        low, high = _middle_quantiles(means, confidence)
    # Rounding can put the end of an interval on the wrong side of its middle.
    return Accuracy(mean, min(low, mean), max(high, mean))


def paired_difference(
    a: np.ndarray, b: np.ndarray, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Difference:
    """Return the mean accuracy of `a` minus that of `b` on the same images, with a bootstrap interval.

    Images are resampled for both at once, so that easy and hard ones cancel, and within each image the draws of
    either. Where resampling sees no variation, which says little with few images, the interval allows for as many
    differing images as Wilson's interval of none.

    Args:
        a: Correctness per image and noise draw, shape `(images, draws)`; see [`correct_draws`].
        b: The same of another classifier or attack, for the same images in the same order. The number of draws may
            differ.
        confidence: Coverage of the interval, in (0, 1).
        num_resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Returns:
        The difference, above 0 where `a` is right more often.

    Raises:
        ValueError: There are no images, or not as many in `a` as in `b`.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"a paired difference needs the same images, at least one, got {len(a)} and {len(b)}")
    shares = a.mean(axis=1), b.mean(axis=1)
    mean = float(shares[0].mean() - shares[1].mean())
    certain = all(((share == 0) | (share == 1)).all() for share in shares)
    if certain and np.ptp(shares[0] - shares[1]) == 0:
        _, half = wilson_interval(0.0, len(a), confidence)
        low, high = max(-1.0, mean - half), min(1.0, mean + half)
    else:
        means = _resampled_means([a, b], num_resamples, seed)
        low, high = _middle_quantiles(means[0] - means[1], confidence)
    return Difference(mean, min(low, mean), max(high, mean))


def unpaired_difference(a: np.ndarray, b: np.ndarray, confidence: float = 0.95) -> Difference:
    """Return the mean accuracy of `a` minus that of `b`, measured on different images.

    The interval combines those of the two accuracies (Newcombe 1998, method 10; Zou and Donner 2008).

    Args:
        a: Correctness per image and noise draw, shape `(images, draws)`; see [`correct_draws`].
        b: The same of another classifier or attack, for other images.
        confidence: Coverage of the interval, in (0, 1).

    Returns:
        The difference, above 0 where `a` is right more often.

    Raises:
        ValueError: `a` or `b` has no images.
    """
    first, second = mean_accuracy(a, confidence), mean_accuracy(b, confidence, seed=1)
    mean = first.mean - second.mean
    low = mean - np.hypot(first.mean - first.low, second.high - second.mean)
    high = mean + np.hypot(first.high - first.mean, second.mean - second.low)
    return Difference(mean, max(-1.0, float(low)), min(1.0, float(high)))


def _resampled_means(parts: Sequence[np.ndarray], num_resamples: int, seed: int) -> list[np.ndarray]:
    """Return bootstrap samples of the mean accuracy of each part; all parts have the same images."""
    num_images = len(parts[0])
    rng = np.random.default_rng(seed)
    means: list[list[np.ndarray]] = [[] for _ in parts]
    # In chunks: an array of all resamples of a large validation set does not fit into memory.
    chunk = max(1, _MAX_RESAMPLED // num_images)
    for start in range(0, num_resamples, chunk):
        picked = rng.integers(num_images, size=(min(chunk, num_resamples - start), num_images))
        for part, own in zip(parts, means):
            # For each resampled image the number of right answers among as many resampled draws is binomial.
            num_draws = part.shape[1]
            own.append(rng.binomial(num_draws, part.mean(axis=1)[picked]).mean(axis=1) / num_draws)
    return [np.concatenate(own) for own in means]


def _middle_quantiles(values: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def wilson_interval(share: float, num_images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval.

    Args:
        share: A share of independent images, in [0, 1].
        num_images: How many there are.
        confidence: Coverage of the interval, in (0, 1).
    """
    z = float(torch.special.ndtri(torch.tensor((1 + confidence) / 2, dtype=torch.float64)))
    center = (share + z**2 / (2 * num_images)) / (1 + z**2 / num_images)
    half = z / (1 + z**2 / num_images) * np.sqrt(share * (1 - share) / num_images + z**2 / (4 * num_images**2))
    return max(0.0, float(center - half)), min(1.0, float(center + half))


def certified_accuracy(
    predictions: np.ndarray,
    certified_radii: np.ndarray,
    references: np.ndarray,
    radii: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Return the share of images whose class is right and certified at least up to a radius, with Wilson's interval.

    Args:
        predictions: The certified class per image, -1 where the classifier abstains; shape `(images,)`.
        certified_radii: The certified radius per image, shape `(images,)`.
        references: True classes, shape `(images,)`.
        radii: Radii at which to tell the accuracy, in the unit of `certified_radii`.
        confidence: Coverage of the intervals, in (0, 1).

    Returns:
        `radii`; for each of them `certified_accuracy`, `certified_accuracy_low` and `certified_accuracy_high`; the
        mean radius over images, 0 for wrong classes (`average_certified_radius`); the share without an answer
        (`abstained`); and `num_images`.
    """
    asked = np.asarray(radii, dtype=np.float64).reshape(-1)
    correct = predictions == references
    shares = [float((correct & (certified_radii >= radius)).mean()) for radius in asked]
    intervals = [wilson_interval(share, len(correct), confidence) for share in shares]
    return {
        "radii": asked.tolist(),
        "certified_accuracy": shares,
        "certified_accuracy_low": [low for low, _ in intervals],
        "certified_accuracy_high": [high for _, high in intervals],
        "average_certified_radius": float(np.where(correct, certified_radii, 0).mean()),
        "abstained": float((predictions == -1).mean()),
        "num_images": len(correct),
    }
