# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Reports of robustness as text: tables that read well in a terminal and are valid Markdown."""

import math

from ..utils.text_table import bullets, plural, render_table, sigma_key, sigma_label, wrapped
from .figures import NUM_TRIES, NUM_VOTES, Row
from .protocol import (
    AUTOATTACK,
    CLEAN,
    DEFAULT_PRECISION,
    HEADLINE,
    TARGETED,
    UNBOUNDED,
    AttackBudget,
    AttackConfiguration,
)
from .report import RobustnessReport


# Clean accuracy that the recommended sigma may cost, if nothing else is asked for.
_CLEAN_LOSS = 0.05
_VERDICTS = {True: "PASS", False: "FAIL", None: "n.a."}


def column_label(report: RobustnessReport, sigma: float | None) -> str:
    """Return the name of a sigma in a report: the only one of a model without a defense is not "off"."""
    return "no defense" if report.sigmas == (None,) else sigma_label(sigma)


def render(report: RobustnessReport, min_clean_accuracy: float | None = None) -> str:
    """Return all figures of a report, for a terminal or as Markdown.

    Args:
        report: An evaluation under attack.
        min_clean_accuracy: Least clean accuracy of the recommended sigma, in [0, 1]; five points below the highest if
            left out.
    """
    sections = [
        wrapped(describe(report)),
        "### Attacks",
        _attack_table(report),
        *_matrix(report),
        *_eps_table(report),
        *_sigma_choice(report, min_clean_accuracy),
    ]
    if report.checks:
        rows = [[check["name"], _VERDICTS[check["passed"]], check["detail"]] for check in report.checks]
        sections += ["### Sanity checks", render_table(["check", "result", "detail"], rows, numbers=False)]
    for title, sentences in (("Left out", report.left_out), ("Cut to fit the time budget", report.cut)):
        if sentences:
            sections += [f"### {title}", bullets(sentences)]
    return "\n\n".join(sections)


def describe(report: RobustnessReport) -> str:
    """Return sentences that say what the figures of a report mean and how they were made."""
    settings, budget = report.settings, report.settings["strength"]
    sigma, num_images = settings["sigma"], len(report.correct(CLEAN, settings["sigma"]))
    num_draws = report.row(CLEAN, sigma).num_draws
    defense = "no defense" if sigma is None else f"defense with sigma {sigma_key(sigma)} (units of 0..255 pixels)"
    votes = f"{NUM_VOTES} for the vote, up to {NUM_TRIES} for the worst of {NUM_TRIES}"
    passes = f"1 for one shot, {votes}"
    predictor, drawn, gradient_draws = "", "fresh noise draws", plural(budget["num_draws"], "noise draw")
    queries, num_samples = f"{budget['num_queries']:,} queries, draws counted", settings["num_samples"]
    if num_samples > 1:
        how = {"mean": "by mean probability", "majority": "each for one class"}[settings["vote"]]
        predictor = (
            f" Each prediction at a sigma above 0 is the vote of {num_samples} noise draws ({how}), which is"
            " attacked as a whole; below, a draw is such a vote."
        )
        drawn = f"votes of {num_samples} fresh noise draws"
        made = AttackBudget(**budget)
        gradient_draws = f"{plural(made.votes(num_samples), 'vote')} of {num_samples} noise draws"
        queries = f"{made.queries(num_samples):,} queries, every vote counted"
        passes = (
            f"{num_samples} for one shot, {num_samples} times {NUM_VOTES} for the majority, up to {num_samples} times"
        )
        passes += f" {NUM_TRIES} for the worst of {NUM_TRIES}"
    if num_draws == 1:
        passes = "1, as equal images are answered equally, so one shot, worst of ten and vote are the same"
    draws = f"{num_draws} {drawn}" if num_draws > 1 else "the one answer"
    gradients = f", {gradient_draws} per gradient" if any(settings["sigmas"]) else ""
    iterative = f"{budget['steps']} steps{gradients}, {plural(budget['restarts'], 'restart')} per loss"
    dtype = settings["dtype"]
    if settings["attack_precision"] != DEFAULT_PRECISION:
        approximate = f"{settings['attack_precision']} (autocast)"
        dtype += f"; attacks on the random defense search in {approximate}, and what they find is judged in {dtype}"
    return (
        f"{settings['model']} on {num_images} images of {settings['dataset']} ({settings['split']}, hash"
        f" {report.images_hash}): {defense}.{predictor} Accuracies in %, with 95 % intervals. One shot: mean over"
        f" {draws} of the finished image, which the attack never saw (bootstrap over images and draws). Worst of"
        f" {NUM_TRIES}: right in each of {NUM_TRIES} draws; majority of {NUM_VOTES}: most votes are right, ties are"
        f" wrong (Wilson). Forward passes per prediction: {passes}. Attacks: {settings['norm']}, eps ="
        f" {settings['eps']:g}/255 for pixels in [0, 1]; iterative ones {iterative}; Square"
        f" {queries}; the options of each are in the JSON file of results."
        f" Suite {settings['suite']}, seed {settings['seed']}, {dtype}."
    )


def _attack_table(report: RobustnessReport) -> str:
    sigma, eps = report.settings["sigma"], report.settings["eps"]
    columns = ["attack", "images", "one shot", f"worst of {NUM_TRIES}", f"majority of {NUM_VOTES}", "clean, one shot"]
    shown = [one for one in report.configurations.values() if _is_shown(one, sigma, eps)]
    marks = [" *" if one.fixed_noise else " **" if one.group == "check" else "" for one in shown]
    rows = [_attack_line(report.row(one.name, sigma), one.name + mark) for one, mark in zip(shown, marks)]
    notes = [
        "The strongest attack is chosen image by image, on noise draws that the accuracy is not measured on.",
        "\\* The attacker knows the noise: what randomness alone protects is gone. Not one of the strongest."
        if " *" in marks
        else "",
        "\\*\\* For a check only, not one of the strongest." if " **" in marks else "",
        _robustbench_note([one.name for one in shown], sigma),
    ]
    try:
        strongest = report.strongest(sigma)
        rows.append(_attack_line(strongest.row, f"strongest of {len(strongest.candidates)} on each image"))
    except ValueError:
        notes[0] = "No attack was measured."
    return "\n\n".join([render_table(columns, rows), wrapped(" ".join(note for note in notes if note))])


def _robustbench_note(names: list[str], sigma: float | None) -> str:
    if sigma:
        return (
            "RobustBench takes no models with random answers, so these figures have no counterpart there. A model"
            " without a defense, or with sigma off or 0, compares with it."
        )
    own = [name for name in (TARGETED, AUTOATTACK) if name in names]
    if not own:
        return ""
    if AUTOATTACK in own:
        return (
            "Answers are not random here: AutoAttack may be compared with the figures of RobustBench, which takes no"
            " models with random answers."
        )
    return (
        "Answers are not random here, but nothing above compares with RobustBench, which takes no models with random"
        " answers: it ranks by AutoAttack (--suite full), of which APGD-T is a part."
    )


def _is_shown(one: AttackConfiguration, sigma: float | None, eps: float) -> bool:
    """Return whether an attack configuration belongs in the table of attacks at the main eps and sigma."""
    if sigma not in one.defense_sigmas or one.group == "grid":
        return False
    return one.group == "clean" or one.eps == eps


def _attack_line(row: Row, name: str) -> list[str]:
    return [name, str(row.num_images), *map(str, (row.accuracy, row.worst_of_10, row.majority_of_11, row.clean))]


def _matrix(report: RobustnessReport) -> list[str]:
    """Return the table of assumed against used sigma; nothing for a single sigma."""
    sigmas, eps = report.sigmas, report.settings["eps"]
    if len(sigmas) == 1:
        return []

    def line(title: str, name: str) -> list[str]:
        measured = report.configuration(name).defense_sigmas
        shown = [f"{100 * report.row(name, one).accuracy.mean:.1f}" if one in measured else "-" for one in sigmas]
        return [title, *shown]

    comparable = {one: report.strongest(one, comparable=True) for one in sigmas}
    attacks = [one for one in report.configurations.values() if one.name in comparable[sigmas[0]].candidates]
    attacks.sort(key=lambda one: -math.inf if one.attack_sigma is None else one.attack_sigma)
    rows = [line("no attack", CLEAN)]
    for one in attacks:
        attack = HEADLINE if one.attack == "eot_pgd" and one.gradient == "full" else one.name
        rows.append(line(f"{attack}, made for {sigma_label(one.attack_sigma)}", one.name))
    means = [f"{100 * comparable[one].row.accuracy.mean:.1f}" for one in sigmas]
    rows.append([f"strongest of these {len(attacks)}", *means])
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


def _eps_table(report: RobustnessReport) -> list[str]:
    """Return the table of accuracy over eps; nothing for a single eps."""
    curves = {sigma: {row.eps: row for row in report.eps_curve(sigma)} for sigma in report.sigmas}
    main = report.settings["sigma"]
    # A sigma that was attacked at the main eps only has no curve.
    shown = [sigma for sigma in report.sigmas if len(curves[sigma]) > 1 or sigma == main]
    lengths = sorted({eps for sigma in shown for eps in curves[sigma]})
    largest = UNBOUNDED in report.configurations
    if not lengths or (len(lengths) == 1 and not largest):
        return []
    number = len(report.correct(CLEAN, main))

    def entry(row: Row | None) -> str:
        if row is None:
            return "-"
        return str(row.accuracy) + (f" (of {row.num_images})" if row.num_images < number else "")

    rows = [["0 (no attack)", *(str(report.row(CLEAN, sigma).accuracy) for sigma in shown)]]
    rows += [[f"{eps:g}", *(entry(curves[sigma].get(eps)) for sigma in shown)] for eps in lengths]
    if largest:
        row = report.row(UNBOUNDED, main)
        rows.append(["unbounded", *(entry(row if sigma == main else None) for sigma in shown)])
    note = f"One-shot accuracies in % under {HEADLINE} made for the sigma that it meets; eps in units of 1/255."
    if any("(of " in text for row in rows for text in row):
        note += f" (of N): on the first N of the {number} images only."
    table = render_table(["eps", *(column_label(report, sigma) for sigma in shown)], rows)
    return ["### Accuracy over eps", table, wrapped(note)]


def _sigma_choice(report: RobustnessReport, min_clean_accuracy: float | None) -> list[str]:
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
            f"recommended ({asked}): {sigma_label(choice.sigma)}, clean {choice.clean}, under attack {choice.robust};"
            + (f" not distinguishable from {close}" if close else apart)
        ]
    knee = report.knee()
    lines.append(
        "knee of clean against robust accuracy: "
        + (sigma_label(knee.sigma) if knee else "none, as fewer than three sigmas are unbeaten, or none bends outward")
    )
    lines.append("both were chosen on the images that the figures are measured on: confirm the choice on others")
    return ["### Choice of sigma", bullets(lines)]
