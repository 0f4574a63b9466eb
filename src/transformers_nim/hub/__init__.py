# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Model cards made from result files: no number on a card is typed by hand.

python -m transformers_nim.cards FOLDER          # writes what is generated
python -m transformers_nim.cards FOLDER --check  # says what differs
"""

from ..utils.text_table import render_table
from .card_results import Evaluation, Figure, read_evaluation
from .model_card import card_differences, card_files, read_inputs, write_card
from .tables import attack_table, certificate_table


__all__ = [
    "Evaluation",
    "Figure",
    "attack_table",
    "card_differences",
    "card_files",
    "certificate_table",
    "read_evaluation",
    "read_inputs",
    "render_table",
    "write_card",
]
