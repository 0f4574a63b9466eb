# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Measure a classifier's accuracy under attack, without flattering random defenses."""

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
from .evaluate import evaluate_robustness
from .figures import Row, SigmaChoice, Strongest, TradeOff
from .model_table import model_table
from .plots import plot_eps_curve, plot_examples, plot_tradeoff
from .report import RobustnessReport
from .tables import render
from .verdict import verdict


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
    "evaluate_robustness",
    "mean_accuracy",
    "model_table",
    "paired_difference",
    "plot_eps_curve",
    "plot_examples",
    "plot_tradeoff",
    "render",
    "unpaired_difference",
    "verdict",
    "wilson_interval",
]
