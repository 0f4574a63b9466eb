# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Reports of robustness as text: tables that read well in a terminal and are valid Markdown."""

import math

from ..utils.text_table import bullets, plural, render_table, sigma_label, wrapped
from .figures import NUM_TRIES, NUM_VOTES, Row, Strongest
from .measurements import Measurements
from .protocol import (
    AUTOATTACK,
    CLEAN,
    FULL_PRECISION,
    HEADLINE,
    TARGETED,
    UNBOUNDED,
    AttackBudget,
    AttackConfiguration,
)
from .verdict import column_label, has_own_noise, verdict


# Clean accuracy that the recommended sigma may cost, if nothing else is asked for.
_CLEAN_LOSS = 0.05
_RESULTS = {True: "PASS", False: "FAIL", None: "n.a."}


def render(report: Measurements, min_clean_accuracy: float | None = None) -> str:
    """Return all figures of a report, for a terminal or as Markdown.

    Args:
        report: An evaluation under attack.
        min_clean_accuracy: Least clean accuracy of the recommended sigma, in [0, 1]; five points below the highest if
            left out.
    """
    columns, rows, notes = attack_table(report)
    sections = [
        wrapped(f"{verdict(report)}."),
        wrapped(_what_was_measured(report)),
        "### Attacks",
        render_table(columns, rows),
        wrapped(notes),
        *_matrix(report),
        *_eps_table(report),
        *_sigma_choice(report, min_clean_accuracy),
    ]
    if report.checks:
        lines = [[check["name"], _RESULTS[check["passed"]], check["detail"]] for check in report.checks]
        sections += ["### Sanity checks", render_table(["check", "result", "detail"], lines, numbers=False)]
    for title, sentences in (("Left out", report.left_out), ("Cut to fit the time budget", report.cut)):
        if sentences:
            sections += [f"### {title}", bullets(sentences)]
    sections += ["### How it was measured", bullets(describe(report))]
    return "\n\n".join(sections)


def _what_was_measured(report: Measurements) -> str:
    settings = report.settings
    number = plural(len(report.correct(CLEAN, settings["sigma"])), "image")
    return (
        f"{settings['model']} on {number} of {settings['dataset']} ({settings['split']}). Accuracies in %, in brackets"
        " their 95 % intervals."
    )


def describe(report: Measurements) -> list[str]:
    """Return sentences that say how the figures of a report were made."""
    settings, budget = report.settings, AttackBudget(**report.settings["strength"])
    sigma, num_samples = settings["sigma"], settings["num_samples"]
    num_draws = report.row(CLEAN, sigma).num_draws
    has_vote = num_samples > 1
    lines = ["The model draws noise of its own." if has_own_noise(report) else "The model has no defense."]
    if report.sigmas != (None,):
        lines = [f"Defense: {column_label(report, sigma)}, in units of 0..255 pixels."]
    if has_vote:
        how = {"mean": "the mean of their probabilities", "majority": "the class that most of them choose"}
        lines.append(
            f"Each prediction at a sigma above 0 combines {num_samples} noise draws: {how[settings['vote']]}. This"
            " vote is what is attacked and counted."
        )
    if num_draws == 1:
        lines.append("Equal images get equal answers, so one prediction decides. It takes 1 forward pass.")
    else:
        votes = f" of {num_samples} noise draws each" if has_vote else ", each with fresh noise"
        lines += [
            f"Every finished image is classified {num_draws} times{votes}; the attack saw none of this noise.",
            f"Forward passes: {num_samples} for one prediction, {num_samples * NUM_VOTES} for the majority of"
            f" {NUM_VOTES}, up to {num_samples * NUM_TRIES} for {NUM_TRIES} tries.",
        ]
    per_gradient, queries = "", f"{budget.num_queries:,} predictions"
    if any(settings["sigmas"]) or has_own_noise(report):
        per_gradient = f", {plural(budget.num_draws, 'noise draw')} per gradient"
        queries += ", each noise draw counted"
        if has_vote:
            per_gradient = f", {plural(budget.votes(num_samples), 'vote')} of {num_samples} noise draws per gradient"
            queries = f"{budget.queries(num_samples):,} votes of {num_samples} noise draws"
    lines += [
        f"Attacks: {settings['norm']}, eps {settings['eps']:g}/255 for pixels in [0, 1]; those by gradients take"
        f" {budget.steps} steps{per_gradient}, {plural(budget.restarts, 'restart')} per loss; Square asks for"
        f" {queries}. All options are in the file of results.",
        f"Suite {settings['suite']}, seed {settings['seed']}, {settings['dtype']}; hash of the images"
        f" {report.images_hash}.",
        "Intervals are Wilson's, where several noise draws of an image count by the spread between images. That"
        " training again gives another model is not part of them.",
    ]
    if settings["attack_precision"] != FULL_PRECISION:
        lines.append(
            f"Attacks on the random defense search in {settings['attack_precision']} (autocast); what they find is"
            f" judged in {settings['dtype']}."
        )
    return lines


def attack_table(report: Measurements) -> tuple[list[str], list[list[str]], str]:
    """Return heading, cells and notes of the table of attacks at the main eps and sigma.

    The strongest attack on each image comes first, then the clean images and single attacks from strong to weak; last
    those that are not part of the strongest.
    """
    sigma, eps = report.settings["sigma"], report.settings["eps"]
    shown = [one for one in report.configurations.values() if _is_shown(one, sigma, eps)]
    rows = [report.row(one.name, sigma) for one in shown]
    rows.sort(key=lambda row: (_mark(row) != "", _mark(row) != " *", row.group != "clean", row.accuracy.mean))
    taken_over = {row.configuration: report.num_taken_over(row.configuration) for row in rows}
    lines = [_attack_line(row, row.configuration + _mark(row), taken_over[row.configuration]) for row in rows]
    notes = []
    if report.has_attacks:
        strongest = report.strongest(sigma)
        lines.insert(0, _attack_line(strongest.row, f"strongest of {len(strongest.candidates)} on each image"))
        fresh = ", judged by other noise than the accuracy" if strongest.row.num_draws > 1 else ""
        notes.append(f"Strongest: on each image the attack that works best there{fresh}.")
        notes.append(_wrong_choices(report, strongest))
    if any(taken_over.values()):
        notes.append(
            "N of M images: the others had been broken by an earlier attack, and count as it left"
            " them, so that such a row tells what is left after both."
        )
    is_random = any(row.num_draws > 1 for row in rows)
    if is_random:
        columns = ["one shot", f"worst of {NUM_TRIES}", f"majority of {NUM_VOTES}", "clean, one shot"]
        notes.append(
            f"One shot: one prediction. Worst of {NUM_TRIES}: right in each of {NUM_TRIES} predictions, so the"
            f" attacker may try {NUM_TRIES} times. Majority of {NUM_VOTES}: most of {NUM_VOTES} predictions are right."
        )
    else:
        columns, lines = ["accuracy"], [line[:3] for line in lines]
    if any(_mark(row) == " *" for row in rows):
        notes.append("\\* The attacker knows the noise, which is always the same here.")
    if any(_mark(row) == " **" for row in rows):
        notes.append("\\*\\* Only for the sanity checks. Rows with a star are no part of the strongest.")
    notes.append(_robustbench_note([row.configuration for row in rows], is_random))
    return ["attack", "images", *columns], lines, " ".join(note for note in notes if note)


def _wrong_choices(report: Measurements, strongest: Strongest) -> str:
    """Return a sentence that names an attack which leaves less than the strongest of all; empty if there is none."""
    rows = [report.row(name, strongest.row.defense_sigma) for name in strongest.candidates]
    least = min(rows, key=lambda row: row.accuracy.mean)
    if least.accuracy.mean >= strongest.row.accuracy.mean:
        return ""
    where = f" at {sigma_label(least.defense_sigma)}" if len(report.sigmas) > 1 else ""
    return (
        f"{least.configuration} alone leaves less{where} ({100 * least.accuracy.mean:.1f} %), as a choice by few noise"
        " draws is not always right: accuracy is no higher than the lower figure."
    )


def _mark(row: Row) -> str:
    return " *" if row.fixed_noise else " **" if row.group == "check" else ""


def _robustbench_note(names: list[str], is_random: bool) -> str:
    if is_random:
        return (
            "RobustBench takes no models with random answers, so these figures have no counterpart there; those of a"
            " model without a defense, or with sigma off or 0, have."
        )
    own = [name for name in (TARGETED, AUTOATTACK) if name in names]
    if not own:
        return ""
    if AUTOATTACK in own:
        return "The row AutoAttack may be compared with the figures of RobustBench."
    return "Nothing above compares with RobustBench: it ranks by AutoAttack (--suite full), of which APGD-T is a part."


def _is_shown(one: AttackConfiguration, sigma: float | None, eps: float) -> bool:
    """Return whether an attack configuration belongs in the table of attacks at the main eps and sigma."""
    if sigma not in one.defense_sigmas or one.group == "grid":
        return False
    return one.group == "clean" or one.eps == eps


def _attack_line(row: Row, name: str, num_taken_over: int = 0) -> list[str]:
    images = f"{row.num_images - num_taken_over} of {row.num_images}" if num_taken_over else str(row.num_images)
    return [name, images, *map(str, (row.accuracy, row.worst_of_10, row.majority_of_11, row.clean))]


def _matrix(report: Measurements) -> list[str]:
    """Return the table of assumed against used sigma; nothing for a single sigma."""
    sigmas, eps = report.sigmas, report.settings["eps"]
    if len(sigmas) == 1 or not report.has_attacks:
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
        f"A row is an attack, made for one sigma; a column is the sigma that the defense uses. Accuracies of one shot"
        f" at eps {eps:g}/255; intervals of the strongest reach at most {100 * widest:.1f} points to either side."
    )
    if any(report.num_taken_over(one.name) for one in attacks):
        note += " An image that an earlier attack had broken at every sigma counts as it left it."
    if len({len(one.candidates) for one in everything}) > 1:
        note += f" Compare columns by the strongest of these {len(attacks)}: in the last row some meet more attacks."
    wrong = [sigma_label(one.row.defense_sigma) for one in everything if _wrong_choices(report, one)]
    if wrong:
        note += (
            f" At {', '.join(wrong)} a single attack leaves less than the last row, as choices by few noise draws are"
            " not always right."
        )
    table = render_table(["accuracy in %", *map(sigma_label, sigmas)], rows)
    return ["### Sigma of the attacker and of the defense", table, wrapped(note)]


def _eps_table(report: Measurements) -> list[str]:
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
    made_for = ", made for the sigma of the column" if report.sigmas != (None,) else ""
    note = f"Accuracies in % under {HEADLINE}{made_for}; eps in units of 1/255."
    if any("(of " in text for row in rows for text in row):
        note += f" (of N): on the first N of the {number} images only."
    table = render_table(["eps", *(column_label(report, sigma) for sigma in shown)], rows)
    return ["### Accuracy over eps", table, wrapped(note)]


def _sigma_choice(report: Measurements, min_clean_accuracy: float | None) -> list[str]:
    if len(report.sigmas) == 1 or not report.has_attacks:
        return []
    lines = [_recommendation(report, min_clean_accuracy)]
    knee = report.knee()
    if knee is not None:
        lines.append(f"Knee: {sigma_label(knee.sigma)}; beyond it, robustness costs more clean accuracy.")
    else:
        lines.append("Knee: none, as clean against robust accuracy does not bend outward between its ends.")
    lines.append("Both are chosen on the images of these figures: confirm a choice on other images.")
    return ["### Choice of sigma", bullets(lines)]


def _recommendation(report: Measurements, min_clean_accuracy: float | None) -> str:
    """Return the sigma to take, or why none is recommended."""
    if any(check["passed"] is False for check in report.checks):
        return "No recommendation: sanity checks failed, so attacks that work may rank the sigmas otherwise."
    points = report.trade_off()
    least, asked = min_clean_accuracy, f"clean accuracy of at least {100 * (min_clean_accuracy or 0):g} %"
    if least is None:
        least = max(0.0, max(point.clean.mean for point in points) - _CLEAN_LOSS)
        asked = f"clean accuracy at most {100 * _CLEAN_LOSS:g} points below the best"
    try:
        choice = report.recommend_sigma(least)
    except ValueError as error:
        return f"No recommendation: {error}."
    figures = f"{sigma_label(choice.sigma)}, clean {choice.clean}, under attack {choice.robust}"
    if choice.against_off is not None and choice.against_off.includes_zero:
        return (
            f"No recommendation ({asked}): the best is {figures}, which cannot be told from off (difference"
            f" {choice.against_off}). More images may tell."
        )
    if choice.indistinguishable:
        apart = f"It cannot be told from {', '.join(map(sigma_label, choice.indistinguishable))}."
    elif sum(point.clean.mean >= least for point in points) == 1:
        apart = "No other sigma is allowed."
    else:
        apart = "It is told apart from every other allowed sigma."
    return f"Recommended ({asked}): {figures}. {apart}"
