# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The result of an evaluation under attack in one sentence."""

import math
from itertools import pairwise

from ..utils.statistics import Accuracy, mean_accuracy, paired_difference, wilson_interval
from ..utils.text_table import plural, sigma_key, sigma_label
from .figures import Row
from .measurements import Measurements
from .protocol import AUTOATTACK, CLEAN, NOISE_KNOWN


def verdict(report: Measurements) -> str:
    """Return the result in one sentence, with what its images can show.

    Robust accuracy stands as a figure only if no sanity check of the attacks failed: otherwise it is called an upper
    limit, since attacks that work may leave less. A model that is not better than chance without an attack has no
    robustness that could be measured.
    """
    sigma, clean = report.settings["sigma"], report.row(CLEAN, report.settings["sigma"])
    beginning = f"{predictor_name(report)}: {_whole(clean.accuracy.mean)} % clean"
    chance = report.chance(sigma)
    if not report.is_above_chance(sigma):
        certain = mean_accuracy(report.correct(CLEAN, sigma), confidence=0.99)
        return (
            f"{beginning}, which cannot be told from chance ({_whole(chance)} %) on"
            f" {plural(clean.num_images, 'image')} (99 % interval {_whole(certain.low)} to {_whole(certain.high)});"
            " nothing can be said of its robustness"
        )
    if not report.has_attacks:
        return f"{beginning} on {plural(clean.num_images, 'image')}; not attacked"
    strongest = report.strongest(sigma)
    number = len(strongest.candidates)
    attacks = f"the strongest of {number} attacks" if number > 1 else f"the attack {strongest.candidates[0]}"
    threat = f"{report.settings['norm']} {report.settings['eps']:g}/255"
    failed = [check["name"] for check in report.checks if check["passed"] is False]
    if failed:
        names = "; ".join(dict.fromkeys(failed))
        checks = [check for check in report.checks if check["passed"] is not None]
        return (
            f"{beginning}; NOT RELIABLE under attack: {len(failed)} of {plural(len(checks), 'sanity check')} failed"
            f" ({names}), so {attacks} at {threat} may be weaker than one that works, and the"
            f" {_whole(strongest.row.accuracy.mean)} % that it leaves on {plural(strongest.row.num_images, 'image')}"
            " are no more than an upper limit"
        )
    parts = [beginning, f"{_with_interval(strongest.row.accuracy)} under {attacks} at {threat}"]
    if strongest.row.num_draws > 1:
        parts.append(f"{_whole(strongest.row.worst_of_10.mean)} % if it may try ten times")
    if NOISE_KNOWN in report.configurations:
        parts.append(f"{_whole(report.row(NOISE_KNOWN, sigma).accuracy.mean)} % if it knows the noise")
    if AUTOATTACK in report.configurations:
        parts.append(f"{_whole(report.row(AUTOATTACK, sigma).accuracy.mean)} % under AutoAttack alone")
    return f"{', '.join(parts)}; {_what_the_images_show(report, strongest.row)}"


def column_label(report: Measurements, sigma: float | None) -> str:
    """Return the name of a sigma in a report: the only one of a model without a defense is not "off"."""
    if report.sigmas == (None,):
        return "its own noise" if has_own_noise(report) else "no defense"
    return sigma_label(sigma)


def has_own_noise(report: Measurements) -> bool:
    """Tell whether a model without a sigma gives equal images different answers."""
    return report.settings.get("own_noise") is not None


def predictor_name(report: Measurements) -> str:
    """Return what predicts, in short: `sigma 50, vote of 16`, `no defense`."""
    sigma, num_samples = report.settings["sigma"], report.settings["num_samples"]
    if sigma is None:
        return column_label(report, None) if report.sigmas == (None,) else "defense off"
    return f"sigma {sigma_key(sigma)}" + (f", vote of {num_samples}" if sigma and num_samples > 1 else "")


def _what_the_images_show(report: Measurements, robust: Row) -> str:
    """Return what differences so many images can show."""
    number = plural(robust.num_images, "image")
    _, unseen = wilson_interval(0.0, robust.num_images)
    # Had the attack left nothing, robust accuracy would be known to be less than half of the clean one.
    if unseen > robust.clean.low / 2:
        return f"{number}: too few to see even a collapse"
    if len(report.sigmas) > 1:
        points = sorted(report.trade_off(), key=lambda point: point.robust.mean)
        correct = [report.strongest(point.sigma, comparable=True).correct for point in points]
        if any(paired_difference(*pair).includes_zero for pair in pairwise(correct)):
            return f"{number}: enough to see a collapse, too few to rank the sigmas"
        return f"{number}: enough to see a collapse, and to rank the sigmas"
    half = max(robust.accuracy.high - robust.accuracy.mean, robust.accuracy.mean - robust.accuracy.low)
    closest = math.ceil(100 * math.sqrt(2) * half)
    return f"{number}: enough to see a collapse, too few to tell apart models closer than about {closest} points"


def _whole(share: float) -> str:
    """Return a share in whole percents; with a decimal where rounding would make it none or all."""
    text = f"{100 * share:.0f}"
    return f"{100 * share:.1f}" if text in ("0", "100") and share not in (0, 1) else text


def _with_interval(accuracy: Accuracy) -> str:
    return f"{_whole(accuracy.mean)} % [{_whole(accuracy.low)}, {_whole(accuracy.high)}]"
