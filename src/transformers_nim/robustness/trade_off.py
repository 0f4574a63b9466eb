# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Which sigma to use: what each costs in clean accuracy and gains in robustness."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..utils.statistics import Accuracy, paired_difference
from .protocol import sigma_key


if TYPE_CHECKING:
    from .report import RobustnessReport


@dataclass(frozen=True)
class TradeOff:
    """What one sigma of the defense costs and gains.

    Attributes:
        sigma: The sigma in units of 0..255 pixels; `None` is the defense switched off.
        clean: Accuracy without an attack.
        robust: Accuracy under the strongest of the attacks that every sigma met.
    """

    sigma: float | None
    clean: Accuracy
    robust: Accuracy


@dataclass(frozen=True)
class SigmaChoice(TradeOff):
    """A recommended sigma.

    Attributes:
        indistinguishable: The other sigmas that were allowed, and whose robust accuracy cannot be told apart from this
            one's: the 95 % interval of the difference on the same images includes 0.
    """

    indistinguishable: tuple[float | None, ...]


def choose_sigma(report: "RobustnessReport", min_clean_accuracy: float) -> SigmaChoice:
    """See [`RobustnessReport.recommend_sigma`]."""
    if not 0 <= min_clean_accuracy <= 1:
        raise ValueError(f"min_clean_accuracy must be in [0, 1], got {min_clean_accuracy!r}")
    points = report.trade_off()
    allowed = [point for point in points if point.clean.mean >= min_clean_accuracy]
    if not allowed:
        best = max(points, key=lambda point: point.clean.mean)
        raise ValueError(
            f"no sigma has a clean accuracy of at least {min_clean_accuracy:g}: the highest is"
            f" {best.clean.mean:.4g}, of sigma {sigma_key(best.sigma)}"
        )
    winner = max(allowed, key=lambda point: (point.robust.mean, point.clean.mean))
    own = report.strongest(winner.sigma, comparable=True).correct
    others = [point.sigma for point in allowed if point.sigma != winner.sigma]
    close = [
        sigma
        for sigma in others
        if paired_difference(own, report.strongest(sigma, comparable=True).correct).includes_zero
    ]
    return SigmaChoice(winner.sigma, winner.clean, winner.robust, tuple(close))


def find_knee(points: list[TradeOff]) -> TradeOff | None:
    """See [`RobustnessReport.knee`]."""
    front: list[TradeOff] = []
    for point in sorted(points, key=lambda point: (-point.clean.mean, -point.robust.mean)):
        if not front or point.robust.mean > front[-1].robust.mean:
            front.append(point)
    if len(front) < 3:
        return None
    first, last = front[0], front[-1]

    def height(point: TradeOff) -> float:
        clean = (point.clean.mean - last.clean.mean) / (first.clean.mean - last.clean.mean)
        robust = (point.robust.mean - first.robust.mean) / (last.robust.mean - first.robust.mean)
        return clean + robust - 1

    highest = max(front[1:-1], key=height)
    return highest if height(highest) > 1e-9 else None
