# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""How much an attacker leaves of a classifier's accuracy, measured so that random defenses are not flattered."""

from .accuracy import (
    Accuracy,
    Difference,
    correct_draws,
    mean_accuracy,
    paired_difference,
    unpaired_difference,
    wilson_interval,
)
from .report import RobustnessReport


__all__ = [
    "Accuracy",
    "Difference",
    "RobustnessReport",
    "correct_draws",
    "mean_accuracy",
    "paired_difference",
    "unpaired_difference",
    "wilson_interval",
]
