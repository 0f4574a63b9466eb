# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Accuracies of classifiers whose predictions are random, and of certified ones, with their intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from .text_table import percent


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


def mean_accuracy(correct: np.ndarray, confidence: float = 0.95) -> Accuracy:
    """Return the mean accuracy with a score interval over images and noise draws.

    With one draw per image it is Wilson's interval. More draws of an image tell more, but less than as many other
    images would: the interval is Wilson's for as many independent images as they are worth, by the spread between
    images (the design effect of cluster samples; Franco et al. 2019, *Comparative study of confidence intervals for
    proportions in complex sample surveys*). Near 0 and 1, where too few images differ to tell the spread, draws count
    nothing beyond their image. The variation of training is not part of it.

    Args:
        correct: Correctness per image and noise draw, shape `(images, draws)`; see [`correct_draws`].
        confidence: Coverage of the interval, in (0, 1).

    Raises:
        ValueError: There are no images.
    """
    if len(correct) == 0:
        raise ValueError("an accuracy needs at least one image")
    shares = correct.mean(axis=1)
    mean = float(shares.mean())
    num_images = _independent_images(shares, mean * (1 - mean), correct.shape[1], confidence)
    low, high = wilson_interval(mean, num_images, confidence)
    # Rounding can put the end of an interval on the wrong side of its middle.
    return Accuracy(mean, min(low, mean), max(high, mean))


def paired_difference(a: np.ndarray, b: np.ndarray, confidence: float = 0.95) -> Difference:
    """Return the mean accuracy of `a` minus that of `b` on the same images, with a score interval.

    With one draw per image it is the interval of Tango 1998 (*Equivalence test and confidence interval for the
    difference in proportions for the paired-sample design*). It depends on the images where the two differ alone, so
    easy and hard ones cancel. With more draws the number of images is that of [`mean_accuracy`]: as many independent
    ones as the draws are worth, by the spread of the difference between images.

    Args:
        a: Correctness per image and noise draw, shape `(images, draws)`; see [`correct_draws`].
        b: The same of another classifier or attack, for the same images in the same order. The number of draws may
            differ.
        confidence: Coverage of the interval, in (0, 1).

    Returns:
        The difference, above 0 where `a` is right more often.

    Raises:
        ValueError: There are no images, or not as many in `a` as in `b`.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"a paired difference needs the same images, at least one, got {len(a)} and {len(b)}")
    shares = a.mean(axis=1), b.mean(axis=1)
    # Shares of images where a draw of one is right and a draw of the other is wrong.
    first, second = float((shares[0] * (1 - shares[1])).mean()), float((shares[1] * (1 - shares[0])).mean())
    num_draws, of_one_draw = max(a.shape[1], b.shape[1]), first + second - (first - second) ** 2
    num_images = _independent_images(shares[0] - shares[1], of_one_draw, num_draws, confidence)
    mean = float(shares[0].mean() - shares[1].mean())
    low, high = _tango_interval(first, second, num_images, confidence)
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
    first, second = mean_accuracy(a, confidence), mean_accuracy(b, confidence)
    mean = first.mean - second.mean
    low = mean - np.hypot(first.mean - first.low, second.high - second.mean)
    high = mean + np.hypot(first.high - first.mean, second.mean - second.low)
    return Difference(mean, max(-1.0, float(low)), min(1.0, float(high)))


def _independent_images(values: np.ndarray, of_one_draw: float, num_draws: int, confidence: float) -> float:
    """Return how many independent images of one draw each tell as much as images of several draws.

    Args:
        values: Means over the draws of each image, shape `(images,)`.
        of_one_draw: Variance that the values would have, had each image one draw.
        num_draws: Draws of each image, which are worth at most as many images.
        confidence: Coverage of the interval.
    """
    num_images, squared = len(values), _normal_quantile(confidence) ** 2
    # The images that carry the spread: with fewer than Wilson's interval adds by itself, it cannot be told.
    informative = num_images * of_one_draw
    if num_images == 1 or informative <= squared:
        return num_images
    effect = float(np.clip(values.var(ddof=1) / of_one_draw, 1 / num_draws, 1))
    return num_images / (effect + (1 - effect) * squared / informative)


def _tango_interval(first: float, second: float, num_images: float, confidence: float) -> tuple[float, float]:
    """Return Tango's score interval for the difference of two shares of the same images.

    Args:
        first: Share of images where only the first is right.
        second: Share of images where only the second is right.
        num_images: How many independent images there are.
        confidence: Coverage of the interval.
    """
    difference, z = first - second, _normal_quantile(confidence)

    def holds(value: float) -> bool:
        """Return whether the score test of a true difference of `value` accepts."""
        # The likeliest share of images where only the second is right (equation 10 of the paper), then the variance.
        linear, constant = (2 - difference) * value - first - second, value * (value - 1) * second
        share = (math.sqrt(max(linear**2 - 8 * constant, 0)) - linear) / 4
        variance = max(2 * share + value * (1 - value), 0)
        return num_images * (difference - value) ** 2 <= z**2 * variance

    ends = []
    for outside in (-1.0, 1.0):
        inside = difference
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if holds(middle) else (inside, middle)
        ends.append(inside)
    return ends[0], ends[1]


def _normal_quantile(confidence: float) -> float:
    """Return how many standard deviations around its mean hold this share of a normal distribution."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def wilson_interval(share: float, num_images: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval (1927, *Probable inference, the law of succession, and statistical inference*).

    Args:
        share: A share of independent images, in [0, 1].
        num_images: How many there are; no whole number where several draws of an image count as more than one.
        confidence: Coverage of the interval, in (0, 1).
    """
    z = _normal_quantile(confidence)
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
