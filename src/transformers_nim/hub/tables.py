# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Tables for terminals and for cards."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..utils.text_table import percent, render_table


def attack_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Accuracies under attacks: one line for each model, one column for each attack.

    Args:
        rows: With `model`, `attack`, and `mean`, `low`, `high` in percent.
    """
    lines: dict[str, list[str]] = {}
    for row in rows:
        lines.setdefault(row["model"], []).append(percent(row["mean"] / 100, row["low"] / 100, row["high"] / 100))
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    return render_table(["accuracy in %", *attacks], [[name, *cells] for name, cells in lines.items()])
