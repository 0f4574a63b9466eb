# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Check that an evaluation shows what it must show if its attacks work.

A defense that hides its gradients looks robust to attacks that follow them. Athalye et al. (arXiv 1802.00420) and
Carlini et al. (arXiv 1902.06705) list the signs; these are their tests, for defenses with noise. A check fails when
the contrary is significant at 99 %, for all comparisons of attacks together, so noise alone seldom fails one.

A check that could not have failed shows nothing, so it does not pass: it is not judged (`passed` is `None`).

- A check of accuracies passes only if the clean accuracy is above chance at 99 %: of a model that guesses, there is
  nothing that an attack could take. See [`Measurements.is_above_chance`].
- That a stronger attack leaves no more than a weaker one passes if it leaves less, significantly; or if it would have
  failed had the stronger attack done nothing at all, which needs images enough and something that the weaker one took.
- That an attack leaves about nothing is judged if the clean accuracy of its images is above chance, and above what
  counts as about nothing, at 99 %.
- Checks of gradients and losses need seven images: if half of all images were bad, fewer could all be good by chance,
  with a probability above 1 %.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..data.evaluation_set import EvaluationSet
from ..utils.records import read_records
from ..utils.statistics import mean_accuracy, paired_difference
from ..utils.text_table import plural
from .measurements import Measurements
from .protocol import (
    BPDA,
    CLEAN,
    CLEAN_NOISE_KNOWN,
    FEW_STEPS,
    FGSM,
    HEADLINE,
    NOISE_KNOWN,
    OFF_LARGE,
    SQUARE,
    UNBOUNDED,
    AttackConfiguration,
    headline_at,
    large_eps_name,
)
from .report import RobustnessReport
from .runner import KEYS, NOT_FINITE, PROBE


# The largest accuracy that counts as "about 0".
ABOUT_ZERO = 0.05
_CONFIDENCE = 0.99
# Largest relative error of a derivative that agrees with a difference, and the share of images where they must.
_TOLERANCE, _AGREEING = 0.1, 0.9
# Share of images on which the attack must raise the loss.
_RISING = 0.95
# Images of which all are good, if half are bad, with a probability of at most 1 %.
_LEAST = math.ceil(math.log2(1 / (1 - _CONFIDENCE)))

# A sanity check: the `name` says what must hold, `passed` is `None` if it cannot be judged, `detail` has the figures.
Check = dict[str, Any]


def make_report(
    folder: str | Path,
    settings: Mapping[str, Any],
    configurations: Sequence[AttackConfiguration],
    images: EvaluationSet,
    **further: Any,
) -> RobustnessReport:
    """Return the report of a finished run, with its sanity checks.

    Args:
        folder: Where the records are; see [`Runner`].
        settings: What decides the figures; see [`RobustnessReport`].
        configurations: The attack configurations that were run.
        images: The images.
        further: Other fields of the report.

    Raises:
        ValueError: An image has no record.
    """
    records = read_records(folder, KEYS)
    further["left_out"] = [*further.get("left_out", ()), *_not_finite(records)]
    report = RobustnessReport(
        settings=dict(settings),
        cells=[configuration.to_dict() for configuration in configurations],
        images=[asdict(image) for image in images.images],
        records=[record for record in records if record["cell"] != PROBE],
        **further,
    )
    return replace(report, checks=run_checks(report, [record for record in records if record["cell"] == PROBE]))


def _not_finite(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences that name the attacks on images where a loss or a gradient was not finite."""
    found: dict[str, list[int]] = {}
    for record in records:
        if record.get(NOT_FINITE):
            found.setdefault(record["cell"], []).append(record["row"])
    return [
        f"the whole strength of {name} on {plural(len(rows), 'image')} (rows {rows[:10]}): a loss or a gradient was"
        " not finite there"
        for name, rows in found.items()
    ]


def run_checks(report: Measurements, probes: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Run all sanity checks of an evaluation.

    Args:
        report: The evaluation.
        probes: Records of gradients; see [`Runner.probe`].
    """
    names = report.configurations.keys()
    sigma, eps, norm = report.settings["sigma"], report.settings["eps"], report.settings["norm"]
    checks = [_takes_something(report), _falls_to_zero(report, large_eps_name(eps, norm))]
    curve = report.eps_curve(sigma)
    by_eps = [name for name in (CLEAN, *(row.configuration for row in curve), UNBOUNDED) if name in names]
    pairs = [("a larger eps leaves no more", larger, smaller) for smaller, larger in pairwise(by_eps)]
    pairs.append(("more steps leave no more", HEADLINE, FEW_STEPS))
    for weaker in (FGSM, "PGD-10, one draw", "uniform noise"):
        pairs.append(("iterative attacks beat single steps and noise", HEADLINE, weaker))
    for weaker in (SQUARE, *(name for name in names if name.startswith("transfer from"))):
        pairs.append(("white-box attacks beat transfer and query attacks", HEADLINE, weaker))
    if sigma is not None:
        for weaker in (BPDA, headline_at(None)):
            pairs.append(("exact gradients beat approximate ones", HEADLINE, weaker))
    # Each at a higher level, so that no more than one evaluation in a hundred fails any of them by chance. Twice, as
    # one end of an interval fails a check.
    num_tests = 1 + sum({stronger, weaker} <= names for _, stronger, weaker in pairs)
    confidence = 1 - 2 * (1 - _CONFIDENCE) / num_tests
    checks += [_not_higher(report, *pair, confidence) for pair in pairs]
    if sigma or NOISE_KNOWN in names:
        checks.append(_known_noise(report, confidence))
    checks.append(_undefended(report))
    if not report.is_above_chance(sigma):
        reason = f"the clean accuracy cannot be told from chance ({100 * report.chance(sigma):.0f} %): "
        checks = [
            {**check, "passed": None, "detail": reason + check["detail"]} if check["passed"] else check
            for check in checks
        ]
    return [*checks, *_gradients(probes), _loss_rises(report)]


def _check(name: str, passed: bool | None, detail: str) -> Check:
    return {"name": name, "passed": passed, "detail": detail}


def _takes_something(report: Measurements) -> Check:
    """Check that the attacks at the main eps take anything at all: too small an eps passes all other checks."""
    text, sigma = "attacks at the main eps take something", report.settings["sigma"]
    if not report.has_attacks:
        return _check(text, None, "not attacked")
    strongest = report.strongest(sigma)
    clean = report.correct(CLEAN, sigma)[: len(strongest.correct)]
    taken = paired_difference(clean, strongest.correct, _CONFIDENCE)
    unit = f"{report.settings['norm']} eps {report.settings['eps']:g}/255"
    detail = f"{unit} takes {100 * taken.mean:.1f} of {100 * clean.mean():.1f} % of {len(clean)} images"
    if taken.low > 0:
        return _check(text, True, detail)
    # Of few images that could be lost, or if few are lost, nothing can be said.
    if taken.mean > 0 or clean.any(axis=1).sum() < _LEAST:
        return _check(text, None, detail)
    return _check(text, False, f"{detail}: eps is too small to tell anything, or the attacks do not work")


def _not_higher(report: Measurements, text: str, stronger: str, weaker: str, confidence: float) -> Check:
    """Check that one attack leaves no more than another."""
    missing = [name for name in (stronger, weaker) if name not in report.configurations]
    if missing:
        return _check(text, None, f"not run: {' and '.join(missing)}")
    sigma = report.settings["sigma"]
    left, right, clean = (report.correct(name, sigma) for name in (stronger, weaker, CLEAN))
    num = min(len(left), len(right))
    if report.num_taken_over(stronger) or report.num_taken_over(weaker):
        # On images that were chosen because an attack had failed there, any other would look strong.
        num = min(num, report.settings["strength"]["num_check_images"])
    left, right, clean = left[:num], right[:num], clean[:num]
    difference = paired_difference(left, right, confidence=confidence)
    detail = (
        f"{stronger} leaves {100 * left.mean():.1f} %, {weaker} {100 * right.mean():.1f} % of {num} images"
        f" (difference {100 * difference.mean:+.1f}, {100 * confidence:.4g} % interval {100 * difference.low:+.1f} to"
        f" {100 * difference.high:+.1f})"
    )
    passed = _judged(difference.low > 0, difference.high < 0, paired_difference(clean, right, confidence).low > 0)
    if passed is None:
        detail = f"had {stronger} done nothing, this would not have failed either: {detail}"
    return _check(text, passed, detail)


def _judged(has_failed: bool, is_affirmed: bool, could_fail: bool) -> bool | None:
    """Return whether a check passed; `None` if its data neither affirms it nor could have failed it."""
    return False if has_failed else True if is_affirmed or could_fail else None


def _known_noise(report: Measurements, confidence: float) -> Check:
    """Compare what the two attackers take from the clean accuracy: one draw of the noise may be kinder than others."""
    text = "an attacker who knows the noise does no worse"
    if not {NOISE_KNOWN, CLEAN_NOISE_KNOWN, HEADLINE} <= report.configurations.keys():
        return _check(text, None, "not run")
    known, clean_known, fresh, clean = (
        report.correct(name, report.settings["sigma"]) for name in (NOISE_KNOWN, CLEAN_NOISE_KNOWN, HEADLINE, CLEAN)
    )
    clean = clean[: len(fresh)]
    kinder = max(clean_known.mean() - clean.mean(), 0)
    difference, idle = (paired_difference(one, fresh, confidence=confidence) for one in (known, clean_known))
    detail = (
        f"of {100 * clean_known.mean():.1f} % it leaves {100 * known.mean():.1f} %; without knowing it,"
        f" {100 * fresh.mean():.1f} % of {100 * clean.mean():.1f} %"
    )
    passed = _judged(difference.low > kinder, difference.high < kinder, idle.low > kinder)
    if passed is None:
        detail = f"had it done nothing on these {len(fresh)} images, this would not have failed either: {detail}"
    return _check(text, passed, detail)


def _falls_to_zero(report: Measurements, large: str) -> Check:
    """Check the attack at a large eps. That without bound is no proof: it may replace any image."""
    text, sigma = "accuracy falls to about 0 at a large eps", report.settings["sigma"]
    found = {name: report.row(name, sigma) for name in (large, UNBOUNDED) if name in report.configurations}
    if large not in found:
        return _check(text, None, "not run")
    detail = ", ".join(f"{name}: {100 * row.accuracy.mean:.1f} %" for name, row in found.items())
    num = found[large].num_images
    check = _about_zero(report, text, sigma, num, min(row.accuracy.mean for row in found.values()), detail)
    if check["passed"] and found[large].accuracy.mean > ABOUT_ZERO:
        return _check(text, None, f"only without bound, where any image may be replaced: {detail}")
    return check


def _about_zero(
    report: Measurements, text: str, sigma: float | None, num_images: int, left: float, detail: str
) -> Check:
    """Check that next to nothing is left, if there was something to take."""
    clean = mean_accuracy(report.correct(CLEAN, sigma)[:num_images], _CONFIDENCE)
    if clean.low <= max(ABOUT_ZERO, report.chance(sigma, num_images)):
        reason = f"without an attack {clean} % of {num_images} images (99 % interval) cannot be told from chance"
        return _check(text, None, f"{reason}: {detail}")
    return _check(text, left <= ABOUT_ZERO, detail)


def _undefended(report: Measurements) -> Check:
    text = "with the defense off, accuracy falls to about 0"
    if report.settings["sigma"] is None:
        return _check(text, None, "the figures are of no defense")
    if not {headline_at(None), OFF_LARGE} <= report.configurations.keys():
        return _check(text, None, "not run")
    rows = [report.row(name, None) for name in (headline_at(None), OFF_LARGE)]
    left, far = (row.accuracy.mean for row in rows)
    detail = f"{100 * left:.1f} % left, and {100 * far:.1f} % at the large eps"
    if left > ABOUT_ZERO and far <= ABOUT_ZERO:
        detail += ": the classifier resists by itself"
    num = rows[0].num_images if left <= far else rows[1].num_images
    return _about_zero(report, text, None, num, min(left, far), detail)


def _gradients(probes: Sequence[Mapping[str, Any]]) -> list[Check]:
    nonzero, agree = "gradients are there and not zero", "gradients agree with finite differences, at fixed noise"
    if not probes:
        return [_check(nonzero, None, "not probed"), _check(agree, None, "not probed")]
    if not any(probe["has_gradient"] for probe in probes):
        detail = "no gradient flows from logits to pixels: attacks by gradients were left out"
        return [_check(nonzero, False, detail), _check(agree, None, "there are none")]
    norms = np.array([probe["norm"] for probe in probes])
    zero = float((norms == 0).mean())
    detail = f"zero on {100 * zero:.0f} % of {len(probes)} images"
    checks = [_check(nonzero, *_enough(zero <= 1 - _AGREEING, len(probes), detail))]
    if not any(probe["differences"] for probe in probes) and zero < 1:
        return [*checks, _check(agree, None, "no seed repeats the model's noise")]
    errors = [
        min(abs(difference / probe["norm"] - 1) for difference in probe["differences"])
        for probe in probes
        if probe["norm"] > 0
    ]
    errors += [math.inf] * int((norms == 0).sum())
    share = float((np.array(errors) <= _TOLERANCE).mean())
    detail = f"on {100 * share:.0f} % of {len(probes)} images, median error {100 * float(np.median(errors)):.2g} %"
    return [*checks, _check(agree, *_enough(share >= _AGREEING, len(probes), detail))]


def _enough(passed: bool, num_images: int, detail: str) -> tuple[bool | None, str]:
    """Return the result of a check of single images: with too few of them it can fail, and cannot pass."""
    if passed and num_images < _LEAST:
        return None, f"{num_images} images are too few, {_LEAST} are needed: {detail}"
    return passed, detail


def _loss_rises(report: Measurements) -> Check:
    text = "the attack raises the loss"
    own = [r for r in report.records if r["cell"] == HEADLINE and not r["skipped"] and r["loss"] is not None]
    if not own:
        return _check(text, None, "no image was attacked")
    before, after = (np.array([record["loss"][index] for record in own]) for index in (0, 1))
    share = float((after > before).mean())
    detail = f"on {100 * share:.0f} % of {len(own)} attacked images, mean {before.mean():.2f} to {after.mean():.2f}"
    return _check(text, *_enough(share >= _RISING, len(own), detail))
