# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""How much an attacker leaves of a classifier's accuracy, measured so that random defenses are not flattered."""

from ..utils.statistics import (
    Accuracy,
    Difference,
    mean_accuracy,
    paired_difference,
    unpaired_difference,
    wilson_interval,
)
from .accuracy import correct_draws
from .compare import compare
from .figures import Row, Strongest
from .plots import plot_eps_curve, plot_examples, plot_tradeoff
from .report import RobustnessReport
from .trade_off import SigmaChoice, TradeOff


__all__ = [
    "Accuracy",
    "Difference",
    "RobustnessReport",
    "Row",
    "SigmaChoice",
    "Strongest",
    "TradeOff",
    "compare",
    "correct_draws",
    "mean_accuracy",
    "paired_difference",
    "plot_eps_curve",
    "plot_examples",
    "plot_tradeoff",
    "unpaired_difference",
    "wilson_interval",
]
