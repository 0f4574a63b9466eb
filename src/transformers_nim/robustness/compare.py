# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Compare two evaluations, with the uncertainty of their differences."""

from collections import Counter
from typing import Any

import numpy as np

from ..utils.statistics import Difference, mean_accuracy, paired_difference, unpaired_difference
from ..utils.text_table import bullets, render_table, sigma_label, wrapped
from .figures import Row
from .measurements import Measurements
from .protocol import CLEAN, AttackConfiguration


# Fields that two attacks of one name must share; steps, draws and restarts may differ and are listed.
_SAME_ATTACK = ("attack", "eps", "norm", "gradient", "fixed_noise", "source")
# Settings that follow from others or say nothing about the figures.
_NOT_LISTED = ("sigmas", "output_dir", "batch_size", "device")


def compare(a: Measurements, b: Measurements) -> str:
    """Return a table of the accuracies of two reports and of their differences.

    Every attack that both have is compared at the main sigma of each report, which may differ or be off, and at each
    further sigma that both were measured with; the strongest attack on each image comes first. Differences are paired
    over the images that are in both (by their hashes): images that are easy or hard for both models cancel. Without
    common images the reports are compared as two samples of one split, which takes far larger differences to tell
    apart.

    A difference tells of the models only as far as the attacks are equally strong. Settings that differ are listed;
    attacks of one name that differ in eps or kind are not compared.

    Args:
        a: A report.
        b: Another; differences are accuracies of `a` minus those of `b`.

    Returns:
        Text that reads well in a terminal and is valid Markdown.

    Raises:
        ValueError: The norms differ, the images are of different data and none is in both, or no attack is in both.
    """
    if a.settings["norm"] != b.settings["norm"]:
        raise ValueError(
            f"accuracies under {a.settings['norm']} and under {b.settings['norm']} cannot be compared: their balls"
            " hold different perturbations; evaluate one again with the norm of the other"
        )
    pairs = _common_images(a, b)
    data = [f"{report.settings['dataset']} ({report.settings['split']})" for report in (a, b)]
    if not len(pairs) and data[0] != data[1]:
        raise ValueError(
            f"the reports are of {data[0]} and {data[1]}, and no image is in both: a difference could be that of the"
            " data; evaluate both on the same images"
        )
    lines: list[tuple[list[str], Difference]] = []
    notes: list[str] = []
    names = list(a.configurations), list(b.configurations)
    for name in [name for name in names[0] if name in names[1]]:
        differs = _what_differs(a.configuration(name), b.configuration(name))
        if differs:
            notes.append(f"{name} is not compared: {differs}")
            continue
        for used in _sigmas_of(a, b, name):
            correct = a.correct(name, used[0]), b.correct(name, used[1])
            lines.append(_line(name, used, (a.row(name, used[0]), b.row(name, used[1])), correct, pairs))
    if not any(cells[0] != CLEAN for cells, _ in lines):
        raise ValueError(f"no attack is in both reports with the same eps: {names[0]} and {names[1]}")
    if a.settings["eps"] == b.settings["eps"]:
        used = (a.settings["sigma"], b.settings["sigma"])
        strongest = a.strongest(used[0]), b.strongest(used[1])
        number = " and ".join(dict.fromkeys(str(len(one.candidates)) for one in strongest))
        correct = strongest[0].correct, strongest[1].correct
        strongest_line = _line(f"strongest of {number}", used, (strongest[0].row, strongest[1].row), correct, pairs)
        lines.insert(0, strongest_line)
        if strongest[0].candidates != strongest[1].candidates:
            notes.append("the strongest are of different attacks: whoever met fewer of them looks better")
    columns = ["attack", "sigma", "images", "a", "b", "a - b"]
    sections = [_verdict(lines), _how(a, b, pairs), render_table(columns, [cells for cells, _ in lines])]
    settings = [[name, str(one), str(other)] for name, one, other in _settings_that_differ(a, b)]
    if settings:
        sections += ["Settings that differ:", render_table(["setting", "a", "b"], settings)]
    return "\n\n".join(sections + ([bullets(notes)] if notes else []))


def _common_images(a: Measurements, b: Measurements) -> np.ndarray:
    """Return the places in `a` and in `b` of the images that both hold, shape `(images, 2)`.

    Images are identified by their hashes, so that subsets and shuffled copies of a data set have images in common. An
    image that a data set holds several times is paired as often as both hold it.
    """
    places = []
    for report in (a, b):
        seen: Counter[str] = Counter()
        found = {}
        for place, image in enumerate(report.images):
            found[image["image"], seen[image["image"]]] = place
            seen[image["image"]] += 1
        places.append(found)
    common = [(place, places[1][key]) for key, place in places[0].items() if key in places[1]]
    return np.array(common, dtype=int).reshape(-1, 2)


def _what_differs(a: AttackConfiguration, b: AttackConfiguration) -> str:
    """Return why two attacks of one name are not the same; empty if they are."""
    different = [name for name in _SAME_ATTACK if getattr(a, name) != getattr(b, name)]
    return ", ".join(f"{name} is {getattr(a, name)!r} and {getattr(b, name)!r}" for name in different)


def _sigmas_of(a: Measurements, b: Measurements, name: str) -> list[tuple[float | None, float | None]]:
    """Return pairs of sigmas: the main ones, if the attack was made for them, and those that both measured."""
    both, mains = (a.configuration(name), b.configuration(name)), (a.settings["sigma"], b.settings["sigma"])
    found = []
    if all(one.attack_sigma == main and main in one.defense_sigmas for one, main in zip(both, mains)):
        found.append(mains)
    # Another assumed sigma is another attack.
    if both[0].attack_sigma == both[1].attack_sigma or both[0].group == "clean":
        found += [(sigma, sigma) for sigma in a.sigmas if all(sigma in one.defense_sigmas for one in both)]
    return list(dict.fromkeys(found))


def _line(
    name: str,
    used: tuple[float | None, float | None],
    rows: tuple[Row, Row],
    correct: tuple[np.ndarray, np.ndarray],
    pairs: np.ndarray,
) -> tuple[list[str], Difference]:
    """Return the cells of one attack, and its difference."""
    sigma = " / ".join(dict.fromkeys(map(sigma_label, used)))
    # Attacks may be on the first images only.
    both = pairs[(pairs[:, 0] < len(correct[0])) & (pairs[:, 1] < len(correct[1]))]
    if len(both):
        first, second = correct[0][both[:, 0]], correct[1][both[:, 1]]
        accuracies = [str(mean_accuracy(one)) for one in (first, second)]
        difference = paired_difference(first, second)
        return [name, sigma, str(len(both)), *accuracies, str(difference)], difference
    difference = unpaired_difference(*correct)
    number = " / ".join(dict.fromkeys(str(len(one)) for one in correct))
    return [name, sigma, number, str(rows[0].accuracy), str(rows[1].accuracy), str(difference)], difference


def _verdict(lines: list[tuple[list[str], Difference]]) -> str:
    """Return in a sentence which model is better without an attack, and under the strongest."""
    told = []
    for what, beginning in (("under the strongest attack", "strongest of "), ("without an attack", CLEAN)):
        for cells, difference in lines:
            if not cells[0].startswith(beginning):
                continue
            better = "a is better" if difference.low > 0 else "b is better"
            if difference.includes_zero:
                better = "a and b cannot be told apart"
            told.append(f"{what} {better} ({cells[3]} and {cells[4]} %, difference {difference})")
            # The next are of further sigmas.
            break
    text = "; ".join(told)
    return wrapped(f"{text[0].upper()}{text[1:]}.")


def _how(a: Measurements, b: Measurements, pairs: np.ndarray) -> str:
    """Return sentences that say what is compared."""
    names = [f"{key} = {report.settings['model']}" for key, report in (("a", a), ("b", b))]
    numbers = [len(report.images) for report in (a, b)]
    if len(pairs):
        number = f"{len(pairs)} images that are in both"
        if numbers != [len(pairs)] * 2:
            number += f" (of {numbers[0]} and {numbers[1]}; accuracies are those of the common ones)"
        how = f"Paired differences over the {number}, with Tango's score intervals by the spread between images."
    else:
        how = (
            f"No image is in both ({numbers[0]} and {numbers[1]} images): differences are not paired, and their"
            " intervals combine those of the two accuracies (Newcombe's method 10)."
        )
    return wrapped(
        f"{', '.join(names)}; {a.settings['dataset']} ({a.settings['split']}), {a.settings['norm']}. One-shot"
        f" accuracies in % with 95 % intervals. {how} With many rows some intervals miss the truth by chance."
    )


def _settings_that_differ(a: Measurements, b: Measurements) -> list[tuple[str, Any, Any]]:
    """Return names and both values; parts of the attack budget and versions one by one."""
    flat = []
    for report in (a, b):
        own = {name: value for name, value in report.settings.items() if name not in _NOT_LISTED}
        own |= {f"budget, {name}": value for name, value in own.pop("strength").items()}
        flat.append(own | {f"version, {name}": value for name, value in report.versions.items()})
    names = dict.fromkeys([*flat[0], *flat[1]])
    pairs = [(name, flat[0].get(name, "-"), flat[1].get(name, "-")) for name in names]
    return [(name, one, other) for name, one, other in pairs if one != other]
