# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Model cards made from result files, and their way to the Hub."""

from .card_results import Evaluation, Figure, read_evaluation
from .model_card import card_differences, card_files, read_inputs, write_card


__all__ = [
    "Evaluation",
    "Figure",
    "card_differences",
    "card_files",
    "read_evaluation",
    "read_inputs",
    "write_card",
]
