# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Randomized smoothing: predictions and L2 radii with a guarantee (Cohen, Rosenfeld, Kolter 2019, arXiv 1902.02918).

The smoothed classifier answers with the class that a base classifier gives most often when Gaussian noise of scale
sigma is added to its input. If that class has a probability of at least `p > 1/2`, no perturbation with an L2 norm
below `sigma * ndtri(p)` changes the answer (Theorem 1 and section 3.2.2 there; `ndtri` is the inverse of the normal
distribution function). p is not known, but votes under drawn noise bound it from below.

This module computes these statistics from a function that draws votes. It knows no model. In denoised smoothing
(Salman et al. 2020, arXiv 2003.01908; Carlini et al. 2023, arXiv 2206.10550), the base classifier denoises first.

sigma is in units of 0..255 pixels, as everywhere in this package; radii are L2 norms of perturbations of pixels in
[0, 1]. The literature gives sigma in [0, 1]: its 0.12, 0.25, 0.5 and 1.0 are 30.6, 63.75, 127.5 and 255 here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .checks_nim import check_counts


# The label of a smoothed classifier that abstains.
ABSTAIN = -1

# From a number of draws to the votes for each class under that many fresh and independent draws of noise.
CountVotes = Callable[[int], np.ndarray]

# A sequential test looks at the votes after about 50 draws, and again at each 1.5-fold number of draws.
_FIRST_LOOK = 50
_LOOK_RATIO = 1.5
# The last look's part of alpha. The rest costs radius for images that need all draws: with n = 10 000, alpha = 0.001
# and all votes for one class, less than 0.011 sigma.
_LAST_LOOK_SHARE = 0.8


@dataclass(frozen=True)
class Certificate:
    """The answer of a smoothed classifier for one image, with a certified radius.

    Attributes:
        label: The class, or `ABSTAIN` (-1) if nothing could be certified.
        radius: L2 norm, of pixels in [0, 1], below which no perturbation changes the class. 0 if it abstains.
        p_lower: Lower confidence bound of the probability of a vote for the candidate.
        candidate: The class with most votes in the first `n0` draws, for which the bound is taken.
        counts: Votes for each class in the draws of the bound.
        num_draws: All noise draws, those that chose the candidate included.
        sigma: Scale of the noise in units of 0..255 pixels.
        alpha: Probability, over the drawn noise, that label and radius are wrong.

    Example:

    ```python
    >>> import numpy as np
    >>> from transformers_nim import Certificate
    >>> from transformers_nim.model.certification import certify

    >>> rng = np.random.default_rng(0)
    >>> certificate = certify(lambda num: rng.multinomial(num, [0.05, 0.9, 0.05]), sigma=63.75, n=10_000)
    >>> isinstance(certificate, Certificate), certificate.label, certificate.num_draws
    (True, 1, 10100)
    >>> 0.29 < certificate.radius < 0.25 * 1.2816  # what an exact knowledge of 0.9 would give
    True
    ```
    """

    label: int
    radius: float
    p_lower: float
    candidate: int
    counts: tuple[int, ...]
    num_draws: int
    sigma: float
    alpha: float

    @property
    def abstained(self) -> bool:
        """Tell whether the smoothed classifier abstains."""
        return self.label == ABSTAIN


@dataclass(frozen=True)
class SmoothedPrediction:
    """The answer of a smoothed classifier for one image, without a radius.

    Attributes:
        label: The class, or `ABSTAIN` (-1) if the votes do not separate it from the runner-up.
        p_value: p-value of the hypothesis that the two classes with most votes are equally probable.
        counts: Votes for each class.
        num_draws: Noise draws used.
        sigma: Scale of the noise in units of 0..255 pixels.
        alpha: Probability, over the drawn noise, of an answer that is not the smoothed classifier's.
    """

    label: int
    p_value: float
    counts: tuple[int, ...]
    num_draws: int
    sigma: float
    alpha: float

    @property
    def abstained(self) -> bool:
        """Tell whether the smoothed classifier abstains."""
        return self.label == ABSTAIN


def _special() -> Any:
    """Import scipy's special functions, which training and prediction do not need."""
    try:
        import scipy.special
    except ImportError as error:
        raise ImportError("certificates need the package 'scipy': pip install 'transformers-nim[certify]'") from error
    return scipy.special


def clopper_pearson_lower(successes: int, trials: int, alpha: float) -> float:
    """Return the exact one-sided lower confidence bound of a probability at level `1 - alpha` (Clopper, Pearson 1934).

    At this probability, `successes` or more of `trials` occur with probability `alpha`.
    """
    if successes == 0:
        return 0.0
    return float(_special().betaincinv(successes, trials - successes + 1, alpha))


def clopper_pearson_upper(successes: int, trials: int, alpha: float) -> float:
    """Return the exact one-sided upper confidence bound of a probability at level `1 - alpha`."""
    return 1.0 - clopper_pearson_lower(trials - successes, trials, alpha)


def certified_radius(p_lower: float, sigma: float) -> float:
    """Return the L2 radius, for pixels in [0, 1], within which a class with probability `p_lower` stays first.

    Args:
        p_lower: A probability in [0, 1). Up to 1/2 nothing is certified.
        sigma: Scale of the noise in units of 0..255 pixels.
    """
    return sigma / 255 * float(_special().ndtri(p_lower)) if p_lower > 0.5 else 0.0


def spending_schedule(n: int, alpha: float) -> list[tuple[int, float]]:
    """Return when a sequential test looks at the votes, and at which level (alpha spending).

    The levels add up to alpha. By the union bound, the confidence bounds of all looks hold together with probability
    `1 - alpha`, so the test may stop at any look for any reason.

    Args:
        n: Draws at the last look.
        alpha: Level of the whole test.

    Returns:
        Increasing numbers of draws up to n, each with its level.
    """
    looks = [n]
    while looks[-1] / _LOOK_RATIO >= _FIRST_LOOK:
        looks.append(math.ceil(looks[-1] / _LOOK_RATIO))
    if len(looks) == 1:
        return [(n, alpha)]
    early = alpha * (1 - _LAST_LOOK_SHARE) / (len(looks) - 1)
    return [(look, early) for look in reversed(looks[1:])] + [(n, alpha * _LAST_LOOK_SHARE)]


def _check(sigma: float, alpha: float, **numbers: int) -> None:
    check_counts(**numbers)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be a probability of error between 0 and 1, such as 0.001, got {alpha!r}")
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be a finite number greater than 0 (units of 0..255 pixels), got {sigma!r}")


def certify(
    count_votes: CountVotes,
    sigma: float,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    sequential: bool = False,
    radius_tolerance: float = 0.0,
    target_radius: float | None = None,
) -> Certificate:
    """Certify the answer of a smoothed classifier for one image (CERTIFY of arXiv 1902.02918, section 3.2.2).

    `n0` draws choose the candidate, and `n` others bound its probability from below (Clopper-Pearson). With
    probability `1 - alpha` the result is right: it abstains, or the smoothed classifier answers `label` for every
    perturbation with an L2 norm below `radius`.

    With `sequential=True` the bound is taken at some ten looks on the way to n, at levels that add up to alpha (see
    [`spending_schedule`]). The test stops

    - when it will almost surely abstain: with the candidate's upper confidence bound, all n draws would not certify;
    - when `target_radius` is certified;
    - when the radius is within `radius_tolerance` of the one that n draws would give if the remaining ones voted for
      the candidate at its upper confidence bound.

    The guarantee stays the same. The cost is radius: an image that needs all n draws gets a slightly smaller one than
    without `sequential`. No test can save draws on easy images without losing radius: m unanimous votes certify at
    most `sigma / 255 * ndtri(alpha ** (1 / m))`, which grows up to the last draw. So `sequential` is off by default,
    and `target_radius` makes easy images cheap.

    Args:
        count_votes: Returns the votes for each class under a given number of fresh noise draws, shape `(classes,)`.
            Draws must be independent of each other and of all earlier ones.
        sigma: Scale of the noise in units of 0..255 pixels, greater than 0.
        n0: Draws that choose the candidate.
        n: Draws that bound its probability; with `sequential` the most that are made.
        alpha: Probability of a wrong result, in (0, 1).
        sequential: Whether to stop early.
        radius_tolerance: Radius to give away for an early stop (L2, pixels in [0, 1]).
        target_radius: Radius at which to stop (L2, pixels in [0, 1]).

    Raises:
        ValueError: An argument is out of range, or an option of the sequential test is given without it.
        ImportError: scipy is not installed.
    """
    _check(sigma, alpha, n0=n0, n=n)
    if not 0 <= radius_tolerance < math.inf:
        raise ValueError(f"radius_tolerance must be finite and at least 0, got {radius_tolerance!r}")
    if target_radius is not None and not 0 < target_radius < math.inf:
        raise ValueError(f"target_radius must be a finite number greater than 0 or None, got {target_radius!r}")
    if not sequential and (radius_tolerance or target_radius is not None):
        raise ValueError("radius_tolerance and target_radius stop a sequential test; pass sequential=True with them")

    selection = np.asarray(count_votes(n0))
    candidate = int(np.argmax(selection))
    levels = spending_schedule(n, alpha) if sequential else [(n, alpha)]
    counts, drawn, p_lower, radius = np.zeros(len(selection), dtype=np.int64), 0, 0.0, 0.0
    for look, level in levels:
        counts, drawn = counts + np.asarray(count_votes(look - drawn)), look
        votes = int(counts[candidate])
        # The bounds of all looks hold together, so the best one holds.
        p_lower = max(p_lower, clopper_pearson_lower(votes, look, level))
        radius = certified_radius(p_lower, sigma)
        if look == n or (target_radius is not None and radius >= target_radius):
            break
        hoped_for = votes + math.ceil((n - look) * clopper_pearson_upper(votes, look, level))
        reach = certified_radius(clopper_pearson_lower(hoped_for, n, levels[-1][1]), sigma)
        # The tolerance applies to radii only: an image that may still be certified is not given up.
        if reach <= radius + (radius_tolerance if radius > 0 else 0):
            break
    return Certificate(
        label=candidate if radius > 0 else ABSTAIN,
        radius=radius,
        p_lower=p_lower,
        candidate=candidate,
        counts=tuple(counts.tolist()),
        num_draws=n0 + drawn,
        sigma=float(sigma),
        alpha=float(alpha),
    )


def predict(count_votes: CountVotes, sigma: float, n: int = 1000, alpha: float = 0.001) -> SmoothedPrediction:
    """Return the answer of a smoothed classifier for one image (PREDICT of arXiv 1902.02918, section 3.2.1).

    It abstains unless a two-sided binomial test separates the class with most votes from the runner-up. The
    probability of an answer that is not the smoothed classifier's is at most alpha (Proposition 1 there).

    Args:
        count_votes: As for [`certify`].
        sigma: Scale of the noise in units of 0..255 pixels, greater than 0.
        n: Noise draws.
        alpha: Probability of a wrong answer, in (0, 1).

    Raises:
        ValueError: An argument is out of range.
        ImportError: scipy is not installed.
    """
    _check(sigma, alpha, n=n)
    counts = count_votes(n)
    label = int(np.argmax(counts))
    most = int(counts[label])
    second = int(np.max(np.delete(counts, label)))
    # Both tails are equal at a probability of 1/2.
    p_value = min(1.0, 2 * float(_special().bdtr(second, most + second, 0.5)))
    return SmoothedPrediction(
        label=label if p_value <= alpha else ABSTAIN,
        p_value=p_value,
        counts=tuple(int(count) for count in counts),
        num_draws=n,
        sigma=float(sigma),
        alpha=float(alpha),
    )


__all__ = ["ABSTAIN", "Certificate", "SmoothedPrediction"]
