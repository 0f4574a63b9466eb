# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Check that an evaluation shows what it must show if its attacks work.

A defense that hides its gradients looks robust to attacks that follow them. Athalye et al. (arXiv 1802.00420) and
Carlini et al. (arXiv 1902.06705) list the signs; these are their tests, for defenses with noise. A check fails when
the contrary is significant at 99 %, so noise alone seldom fails one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..data.evaluation_set import EvaluationSet
from ..utils.records import read_records
from ..utils.statistics import paired_difference
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
from .runner import KEYS, PROBE


# The largest accuracy that counts as "about 0".
ABOUT_ZERO = 0.05
_CONFIDENCE = 0.99
# Largest relative error of a derivative that agrees with a difference, and the share of images where they must.
_TOLERANCE, _AGREEING = 0.1, 0.9
# Share of images on which the attack must raise the loss.
_RISING = 0.95

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
    report = RobustnessReport(
        settings=dict(settings),
        cells=[asdict(configuration) for configuration in configurations],
        images=[asdict(image) for image in images.images],
        records=[record for record in records if record["cell"] != PROBE],
        **further,
    )
    return replace(report, checks=run_checks(report, [record for record in records if record["cell"] == PROBE]))


def run_checks(report: RobustnessReport, probes: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Run all sanity checks of an evaluation.

    Args:
        report: The evaluation.
        probes: Records of gradients; see [`Runner.probe`].
    """
    names = report.configurations.keys()
    sigma, eps, norm = report.settings["sigma"], report.settings["eps"], report.settings["norm"]

    def mean(name: str, at: float | None = sigma) -> float | None:
        return float(report.correct(name, at).mean()) if name in names else None

    def not_higher(text: str, stronger: str, weaker: str) -> Check:
        """Check that one attack leaves no more than another."""
        if not {stronger, weaker} <= names:
            missing = " and ".join(name for name in (stronger, weaker) if name not in names)
            return _check(text, None, f"not run: {missing}")
        left, right = report.correct(stronger, sigma), report.correct(weaker, sigma)
        num = min(len(left), len(right))
        left, right = left[:num], right[:num]
        difference = paired_difference(left, right, confidence=_CONFIDENCE)
        detail = (
            f"{stronger} leaves {100 * left.mean():.1f} %, {weaker} {100 * right.mean():.1f} % of {num} images"
            f" (difference {100 * difference.mean:+.1f}, 99 % interval {100 * difference.low:+.1f} to"
            f" {100 * difference.high:+.1f})"
        )
        return _check(text, not difference.low > 0, detail)

    checks = [_falls_to_zero(mean, [large_eps_name(eps, norm), UNBOUNDED])]
    curve = report.eps_curve(sigma)
    by_eps = [name for name in (CLEAN, *(row.configuration for row in curve), UNBOUNDED) if name in names]
    for smaller, larger in pairwise(by_eps):
        checks.append(not_higher("a larger eps leaves no more", larger, smaller))
    checks.append(not_higher("more steps leave no more", HEADLINE, FEW_STEPS))
    for weaker in (FGSM, "PGD-10, one draw", "uniform noise"):
        checks.append(not_higher("iterative attacks beat single steps and noise", HEADLINE, weaker))
    for weaker in (SQUARE, *(name for name in names if name.startswith("transfer from"))):
        checks.append(not_higher("white-box attacks beat transfer and query attacks", HEADLINE, weaker))
    if sigma is not None:
        for weaker in (BPDA, headline_at(None)):
            checks.append(not_higher("exact gradients beat approximate ones", HEADLINE, weaker))
    if sigma:
        checks.append(_known_noise(report))
    checks.append(_undefended(mean, sigma))
    checks += _gradients(probes)
    checks.append(_loss_rises(report))
    return checks


def _check(name: str, passed: bool | None, detail: str) -> Check:
    return {"name": name, "passed": passed, "detail": detail}


def _known_noise(report: RobustnessReport) -> Check:
    """Compare what the two attackers take from the clean accuracy: one draw of the noise may be kinder than others."""
    text = "an attacker who knows the noise does no worse"
    if not {NOISE_KNOWN, CLEAN_NOISE_KNOWN, HEADLINE} <= report.configurations.keys():
        return _check(text, None, "not run")
    known, clean_known, fresh, clean = (
        report.correct(name, report.settings["sigma"]) for name in (NOISE_KNOWN, CLEAN_NOISE_KNOWN, HEADLINE, CLEAN)
    )
    clean = clean[: len(fresh)]
    kinder = clean_known.mean() - clean.mean()
    difference = paired_difference(known, fresh, confidence=_CONFIDENCE)
    detail = (
        f"of {100 * clean_known.mean():.1f} % it leaves {100 * known.mean():.1f} %; without knowing it,"
        f" {100 * fresh.mean():.1f} % of {100 * clean.mean():.1f} %"
    )
    return _check(text, not difference.low > max(kinder, 0), detail)


def _falls_to_zero(mean: Callable[[str], float | None], names: Sequence[str]) -> Check:
    text = "accuracy falls to about 0 at a large eps, or without bound"
    found = {name: value for name in names if (value := mean(name)) is not None}
    if not found:
        return _check(text, None, "not run")
    detail = ", ".join(f"{name}: {100 * value:.1f} %" for name, value in found.items())
    return _check(text, min(found.values()) <= ABOUT_ZERO, detail)


def _undefended(mean: Callable[..., float | None], sigma: float | None) -> Check:
    text = "with the defense off, accuracy falls to about 0"
    if sigma is None:
        return _check(text, None, "the figures are of no defense")
    left, far = mean(headline_at(None), None), mean(OFF_LARGE, None)
    if left is None or far is None:
        return _check(text, None, "not run")
    detail = f"{100 * left:.1f} % left, and {100 * far:.1f} % at the large eps"
    if left > ABOUT_ZERO and far <= ABOUT_ZERO:
        detail += ": the classifier resists by itself"
    return _check(text, min(left, far) <= ABOUT_ZERO, detail)


def _gradients(probes: Sequence[Mapping[str, Any]]) -> list[Check]:
    nonzero, agree = "gradients are there and not zero", "gradients agree with finite differences, at fixed noise"
    if not probes:
        return [_check(nonzero, None, "not probed"), _check(agree, None, "not probed")]
    if not any(probe["has_gradient"] for probe in probes):
        detail = "no gradient flows from logits to pixels: attacks by gradients were left out"
        return [_check(nonzero, False, detail), _check(agree, None, "there are none")]
    norms = np.array([probe["norm"] for probe in probes])
    zero = float((norms == 0).mean())
    checks = [_check(nonzero, zero <= 1 - _AGREEING, f"zero on {100 * zero:.0f} % of {len(probes)} images")]
    errors = [
        min(abs(difference / probe["norm"] - 1) for difference in probe["differences"])
        for probe in probes
        if probe["norm"] > 0
    ]
    errors += [math.inf] * int((norms == 0).sum())
    share = float((np.array(errors) <= _TOLERANCE).mean())
    detail = f"on {100 * share:.0f} % of {len(probes)} images, median error {100 * float(np.median(errors)):.2g} %"
    return [*checks, _check(agree, share >= _AGREEING, detail)]


def _loss_rises(report: RobustnessReport) -> Check:
    text = "the attack raises the loss"
    own = [r for r in report.records if r["cell"] == HEADLINE and not r["skipped"] and r["loss"] is not None]
    if not own:
        return _check(text, None, "no image was attacked")
    before, after = (np.array([record["loss"][index] for record in own]) for index in (0, 1))
    share = float((after > before).mean())
    detail = f"on {100 * share:.0f} % of {len(own)} attacked images, mean {before.mean():.2f} to {after.mean():.2f}"
    return _check(text, share >= _RISING, detail)
