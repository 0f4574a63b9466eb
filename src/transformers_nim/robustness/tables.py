# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Reports of robustness as text: tables that read well in a terminal and are valid Markdown."""

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..utils.statistics import Accuracy
from ..utils.text_table import render_table
from .figures import NUM_TRIES, NUM_VOTES, Row
from .protocol import CLEAN, DEFAULT_PRECISION, HEADLINE, UNBOUNDED, Cell, sigma_key


if TYPE_CHECKING:
    from .report import RobustnessReport

# Clean accuracy that the recommended sigma may cost, if nothing else is asked for.
_CLEAN_LOSS = 0.05

# Characters of a line of text; tables may be wider.
_WIDTH = 110


def sigma_label(sigma: float | None) -> str:
    """A sigma as tables and plots name it."""
    return "off" if sigma is None else f"sigma {sigma_key(sigma)}"


def column_label(report: "RobustnessReport", sigma: float | None) -> str:
    """A sigma of this report: a model without a defense has none that could be off."""
    return "no defense" if report.sigmas == (None,) else sigma_label(sigma)


def render(report: "RobustnessReport", min_clean_accuracy: float | None) -> str:
    """See [`RobustnessReport.table`]."""
    sections = [
        wrapped(describe(report)),
        "### Attacks",
        _attack_table(report),
        *_matrix(report),
        *_eps_table(report),
        *_sigma_choice(report, min_clean_accuracy),
    ]
    if report.checks:
        rows = [[check["name"], _verdict(check["passed"]), check["detail"]] for check in report.checks]
        sections += ["### Sanity checks", _left_aligned(["check", "result", "detail"], rows)]
    for title, sentences in (("Left out", report.left_out), ("Cut to fit the time budget", report.cut)):
        if sentences:
            sections += [f"### {title}", bullets(sentences)]
    return "\n\n".join(sections)


def describe(report: "RobustnessReport") -> str:
    """See [`RobustnessReport.protocol`]."""
    settings, strength = report.settings, report.settings["strength"]
    sigma, num_images = settings["sigma"], len(report.correct(CLEAN, settings["sigma"]))
    num_draws = report.row(CLEAN, sigma).num_draws
    defense = "no defense" if sigma is None else f"defense with sigma {sigma_key(sigma)} (units of 0..255 pixels)"
    votes = f"{NUM_VOTES} for the vote, up to {NUM_TRIES} for the worst of {NUM_TRIES}"
    passes = f"1 for one shot, {votes}"
    if num_draws == 1:
        passes = "1, as equal images are answered equally, so one shot, worst of ten and vote are the same"
    draws = f"{num_draws} fresh noise draws" if num_draws > 1 else "the one answer"
    restarts = f"{strength['restarts']} restart{'' if strength['restarts'] == 1 else 's'} per loss"
    gradients = f", {strength['num_draws']} noise draws per gradient" if any(settings["sigmas"]) else ""
    iterative = f"{strength['steps']} steps{gradients}, {restarts}"
    dtype = settings["dtype"]
    if settings["attack_precision"] != DEFAULT_PRECISION:
        approximate = f"{settings['attack_precision']} (autocast)"
        dtype += f"; attacks on the random defense search in {approximate}, and what they find is judged in {dtype}"
    return (
        f"{settings['model']} on {num_images} images of {settings['dataset']} ({settings['split']}, hash"
        f" {report.images_hash}): {defense}. Accuracies in %, with 95 % intervals. One shot: mean over {draws} of the"
        " finished image, which the attack never saw (bootstrap over images and draws). Worst of"
        f" {NUM_TRIES}: right in each of {NUM_TRIES} draws; majority of {NUM_VOTES}: most votes are right, ties are"
        f" wrong (Wilson). Forward passes per prediction: {passes}. Attacks: {settings['norm']}, eps ="
        f" {settings['eps']:g}/255 for pixels in [0, 1]; iterative ones {iterative}; Square"
        f" {strength['num_queries']:,} queries, draws counted; the options of each are in the JSON file of results."
        f" Suite {settings['suite']}, seed {settings['seed']}, {dtype}."
    )


def _attack_table(report: "RobustnessReport") -> str:
    sigma, eps = report.settings["sigma"], report.settings["eps"]
    columns = ["attack", "images", "one shot", f"worst of {NUM_TRIES}", f"majority of {NUM_VOTES}", "clean, one shot"]
    cells = [cell for cell in map(report.cell, report.cell_names) if _is_attack_of(cell, sigma, eps)]
    marks = {cell.name: " *" if cell.fixed_noise else " **" if cell.group == "check" else "" for cell in cells}
    rows = [_attack_line(report.row(cell.name, sigma), cell.name + marks[cell.name]) for cell in cells]
    notes = [
        "The strongest attack is chosen image by image, on noise draws that the accuracy is not measured on.",
        "\\* The attacker knows the noise: what randomness alone protects is gone. Not one of the strongest."
        if " *" in marks.values()
        else "",
        "\\*\\* For a check only, not one of the strongest." if " **" in marks.values() else "",
    ]
    try:
        strongest = report.strongest(sigma)
        rows.append(_attack_line(strongest.row, f"strongest of {len(strongest.candidates)} on each image"))
    except ValueError:
        notes[0] = "No attack was measured."
    return "\n\n".join([render_table(columns, rows), wrapped(" ".join(note for note in notes if note))])


def _is_attack_of(cell: Cell, sigma: float | None, eps: float) -> bool:
    """Whether a cell belongs in the table of attacks at the main eps and sigma."""
    if sigma not in cell.defense_sigmas or cell.group == "grid":
        return False
    return cell.group == "clean" or cell.eps == eps


def _attack_line(row: Row, name: str) -> list[str]:
    figures = (row.accuracy, row.worst_of_10, row.majority_of_11, row.clean)
    return [name, str(row.num_images), *map(percent, figures)]


def _matrix(report: "RobustnessReport") -> list[str]:
    """Assumed against used sigma; nothing where there is one sigma only."""
    sigmas, eps = report.sigmas, report.settings["eps"]
    if len(sigmas) == 1:
        return []

    def line(name: str, cell_name: str) -> list[str]:
        measured = report.cell(cell_name).defense_sigmas
        shown = [f"{100 * report.row(cell_name, one).accuracy.mean:.1f}" if one in measured else "-" for one in sigmas]
        return [name, *shown]

    comparable = {one: report.strongest(one, comparable=True) for one in sigmas}
    names = [name for name in report.cell_names if name in comparable[sigmas[0]].candidates]
    names.sort(key=lambda name: _order(report.cell(name).attack_sigma))
    rows = [line("no attack", CLEAN)]
    for name in names:
        cell = report.cell(name)
        attack = HEADLINE if cell.attack == "eot_pgd" and cell.gradient == "full" else name
        rows.append(line(f"{attack}, made for {sigma_label(cell.attack_sigma)}", name))
    means = [f"{100 * comparable[one].row.accuracy.mean:.1f}" for one in sigmas]
    rows.append([f"strongest of these {len(names)}", *means])
    tries = [f"{100 * comparable[one].row.worst_of_10.mean:.1f}" for one in sigmas]
    rows.append([f"the same, worst of {NUM_TRIES}", *tries])
    everything = [report.strongest(one) for one in sigmas]
    shown = [f"{100 * one.row.accuracy.mean:.1f} ({len(one.candidates)})" for one in everything]
    rows.append(["strongest of all (their number)", *shown])
    accuracies = [one.row.accuracy for one in comparable.values()]
    widest = max(max(one.high - one.mean, one.mean - one.low) for one in accuracies)
    note = (
        f"One-shot accuracies in % at eps {eps:g}/255, but for the row that says otherwise; columns are the sigma of"
        f" the defense, and the intervals of the strongest reach at most {100 * widest:.1f} points to either side."
    )
    if len({len(one.candidates) for one in everything}) > 1:
        note += " Compare columns by the rows before the last: in the last, some meet more attacks than others."
    table = render_table(["accuracy in %", *map(sigma_label, sigmas)], rows)
    return ["### Sigma of the attacker and of the defense", table, wrapped(note)]


def _eps_table(report: "RobustnessReport") -> list[str]:
    """Accuracy over eps, with the full grid if it was measured."""
    curves = {sigma: {row.eps: row for row in report.eps_curve(sigma)} for sigma in report.sigmas}
    main = report.settings["sigma"]
    # A sigma that was attacked at the main eps only has no curve.
    shown = [sigma for sigma in report.sigmas if len(curves[sigma]) > 1 or sigma == main]
    lengths = sorted({eps for sigma in shown for eps in curves[sigma]})
    largest = UNBOUNDED in report.cell_names
    if not lengths or (len(lengths) == 1 and not largest):
        return []
    rows = [["0 (no attack)", *(percent(report.row(CLEAN, sigma).accuracy) for sigma in shown)]]
    rows += [[f"{eps:g}", *(_eps_cell(report, curves[sigma].get(eps)) for sigma in shown)] for eps in lengths]
    if largest:
        row = report.row(UNBOUNDED, main)
        rows.append(["unbounded", *(_eps_cell(report, row if sigma == main else None) for sigma in shown)])
    number = len(report.correct(CLEAN, main))
    note = f"One-shot accuracies in % under {HEADLINE} made for the sigma that it meets; eps in units of 1/255."
    if any("(of " in cell for row in rows for cell in row):
        note += f" (of N): on the first N of the {number} images only."
    return [
        "### Accuracy over eps",
        render_table(["eps", *(column_label(report, sigma) for sigma in shown)], rows),
        wrapped(note),
    ]


def _eps_cell(report: "RobustnessReport", row: Row | None) -> str:
    if row is None:
        return "-"
    fewer = row.num_images < len(report.correct(CLEAN, row.defense_sigma))
    return percent(row.accuracy) + (f" (of {row.num_images})" if fewer else "")


def _sigma_choice(report: "RobustnessReport", min_clean_accuracy: float | None) -> list[str]:
    if len(report.sigmas) == 1:
        return []
    best = max(point.clean.mean for point in report.trade_off())
    least = min_clean_accuracy
    asked = f"clean accuracy of at least {100 * (least or 0):g} %"
    if least is None:
        least = max(0.0, best - _CLEAN_LOSS)
        asked = f"clean accuracy at most {100 * _CLEAN_LOSS:g} points below the best"
    try:
        choice = report.recommend_sigma(least)
    except ValueError as error:
        lines = [f"recommended: none, as {error}"]
    else:
        close = ", ".join(map(sigma_label, choice.indistinguishable))
        is_alone = sum(point.clean.mean >= least for point in report.trade_off()) == 1
        apart = " the only one" if is_alone else " distinguishable from every other allowed sigma"
        lines = [
            f"recommended ({asked}): {sigma_label(choice.sigma)}, clean {percent(choice.clean)}, under attack"
            f" {percent(choice.robust)};" + (f" not distinguishable from {close}" if close else apart)
        ]
    knee = report.knee()
    lines.append(
        "knee of clean against robust accuracy: "
        + (sigma_label(knee.sigma) if knee else "none, as fewer than three sigmas are unbeaten, or none bends outward")
    )
    lines.append("both were chosen on the images that the figures are measured on: confirm the choice on others")
    return ["### Choice of sigma", bullets(lines)]


def wrapped(text: str) -> str:
    """Text in lines that a terminal holds."""
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def bullets(sentences: Sequence[str]) -> str:
    """A list, wrapped."""
    lines = (textwrap.indent(wrapped(sentence), "  ") for sentence in sentences)
    return "\n".join(f"- {line[2:]}" for line in lines)


def _verdict(passed: Any) -> str:
    return {True: "PASS", False: "FAIL", None: "n.a."}[passed]


def _left_aligned(columns: list[str], rows: list[list[str]]) -> str:
    """A table of words: all but the last column is padded, the last may be long."""
    widths = [max(len(row[index]) for row in (columns, *rows)) for index in range(len(columns) - 1)]
    lines = [columns, ["-" * width for width in widths] + ["---"], *rows]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths)] + [line[-1]] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def percent(accuracy: Accuracy) -> str:
    """An accuracy with its interval, without padding."""
    return f"{100 * accuracy.mean:.1f} [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"


def _order(sigma: float | None) -> float:
    return -math.inf if sigma is None else sigma
