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


def certificate_table(curves: Sequence[Mapping[str, Any]]) -> str:
    """Certified accuracies: one line for each radius, one column for each sigma.

    Args:
        curves: What `examples/certify.py` writes under that name.
    """
    columns = ["certified accuracy in %", *(f"sigma {curve['sigma']:g} ({curve['sigma_01']:.3g})" for curve in curves)]
    names = ("certified_accuracy", "certified_accuracy_low", "certified_accuracy_high")
    rows = []
    for index, radius in enumerate(curves[0]["radii"]):
        rows.append([f"radius {radius:g}", *(percent(*(curve[name][index] for name in names)) for curve in curves)])
        # Further out there is nothing either.
        if all(curve["certified_accuracy"][index] == 0 for curve in curves):
            break
    rows.append(["abstains, in %", *(percent(curve["abstained"]) for curve in curves)])
    rows.append(["average certified radius", *(f"{curve['average_certified_radius']:.3f}" for curve in curves)])
    rows.append(["noise draws per image", *(f"{curve['mean_num_draws']:,.0f}" for curve in curves)])
    return render_table(columns, rows)
