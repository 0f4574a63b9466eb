# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Several evaluations as a table with one row per model, with the fields of RobustBench's."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..utils.text_table import bullets, percent, render_table
from .figures import NUM_TRIES
from .measurements import Measurements
from .protocol import AUTOATTACK, CLEAN, NOISE_KNOWN
from .verdict import column_label


# The radius of certificates that is shown, if it was measured: L2, pixels in [0, 1].
_RADIUS = 0.25
_ABSENT = "-"


def model_table(
    reports: Sequence[Measurements],
    certificates: Sequence[Mapping[str, Any]] = (),
    extra_data: Mapping[str, str] | None = None,
) -> str:
    """Return a table with one row per evaluation, the highest robust accuracy first.

    Columns that no evaluation has anything to say about are left out.

    Args:
        reports: The evaluations.
        certificates: Contents of `results.json` files of certificates. They belong to the models with their
            `model_hash`.
        extra_data: By `model_hash`, what the models saw besides the data that they are evaluated on. Result files do
            not say it.

    Returns:
        Text that reads well in a terminal and is valid Markdown.

    Raises:
        ValueError: There are no reports.
    """
    if not reports:
        raise ValueError("a table of models needs at least one report")
    rows = [_row(report, certificates, extra_data or {}) for report in sorted(reports, key=_robust, reverse=True)]
    columns = [name for name in rows[0] if any(row[name] != _ABSENT for row in rows)]
    table = render_table(columns, [[row[name] for name in columns] for row in rows])
    return f"{table}\n\n{bullets(_notes(reports, columns))}"


def _robust(report: Measurements) -> float:
    return report.strongest(report.settings["sigma"]).row.accuracy.mean if report.has_attacks else -1.0


def _row(
    report: Measurements, certificates: Sequence[Mapping[str, Any]], extra_data: Mapping[str, str]
) -> dict[str, str]:
    """Return the cells of a report by the names of their columns."""
    settings, sigma = report.settings, report.settings["sigma"]
    clean, num_samples = report.row(CLEAN, sigma), settings["num_samples"]
    robust = tries = _ABSENT
    if report.has_attacks:
        strongest = report.strongest(sigma).row
        has_failed = any(check["passed"] is False for check in report.checks)
        robust = f"at most {100 * strongest.accuracy.mean:.1f}" if has_failed else str(strongest.accuracy)
        tries = str(strongest.worst_of_10) if strongest.num_draws > 1 else _ABSENT
        if not report.is_above_chance(sigma):
            robust = tries = _ABSENT

    def under(name: str) -> str:
        return str(report.row(name, sigma).accuracy) if name in report.configurations else _ABSENT

    number, model_hash = settings.get("num_parameters"), settings.get("model_hash", "")
    size = f", {number / 1e6:.1f} M parameters" if number else ""
    return {
        "model": str(settings["model"]),
        "clean": str(clean.accuracy),
        "robust": robust,
        f"worst of {NUM_TRIES}": tries,
        "noise known": under(NOISE_KNOWN),
        "AutoAttack": under(AUTOATTACK),
        "certified": _certified(certificates, model_hash),
        "threat model": f"{settings['norm']} {settings['eps']:g}/255",
        "sigma": column_label(report, sigma),
        "vote": f"{settings['vote']} of {num_samples}" if num_samples > 1 else _ABSENT,
        "forward passes": str(num_samples),
        "extra data": extra_data.get(model_hash, "?"),
        "architecture": f"{settings.get('model_class', '?')}{size}",
        "images": f"{clean.num_images} of {settings['dataset']} ({settings['split']})",
    }


def _certified(certificates: Sequence[Mapping[str, Any]], model_hash: str) -> str:
    """Return the certified accuracy of a model at one radius, at the sigma where it is highest."""
    curves = [curve for one in certificates if one["settings"]["model_hash"] == model_hash for curve in one["curves"]]
    radii = sorted({radius for curve in curves for radius in curve["radii"] if radius > 0})
    if not radii:
        return _ABSENT
    radius = _RADIUS if _RADIUS in radii else radii[0]
    found = [(curve, curve["radii"].index(radius)) for curve in curves if radius in curve["radii"]]
    curve, index = max(found, key=lambda pair: pair[0]["certified_accuracy"][pair[1]])
    names = ("certified_accuracy", "certified_accuracy_low", "certified_accuracy_high")
    return f"{percent(*(curve[name][index] for name in names))}, L2 {radius:g}, sigma {curve['sigma']:g}"


def _notes(reports: Sequence[Measurements], columns: Sequence[str]) -> list[str]:
    """Return sentences that say what the columns mean, of those that are there."""
    notes = {
        "clean": "Accuracies in %, in brackets their 95 % intervals.",
        "robust": "robust: one prediction under the strongest attack on each image.",
        f"worst of {NUM_TRIES}": f"worst of {NUM_TRIES}: the attacker may try {NUM_TRIES} times.",
        "noise known": "noise known: the attacker knows the noise of the prediction.",
        "AutoAttack": "AutoAttack: the column that compares with RobustBench, which takes no random answers.",
        "certified": "certified: right by the vote under noise, which no perturbation up to this L2 norm changes"
        " (pixels in [0, 1]).",
        "extra data": "extra data: what was trained on besides the data of the evaluation; ? where no file says it.",
    }
    found = [text for name, text in notes.items() if name in columns]
    if any(check["passed"] is False for report in reports for check in report.checks):
        found.append("at most: sanity checks of the attacks failed, so attacks that work may leave less.")
    if not all(report.is_above_chance(report.settings["sigma"]) for report in reports):
        found.append("Models whose clean accuracy cannot be told from chance have no robust accuracy.")
    if len({report.images_hash for report in reports}) > 1:
        found.append("Not all rows are of the same images: differences may be those of the images.")
    return found
