# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The figures of an evaluation: accuracies of single attacks, and of the strongest of them on each image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..utils.statistics import Accuracy, mean_accuracy, wilson_interval
from .protocol import CLEAN, CLEAN_NOISE_KNOWN, HEADLINE, Cell, sigma_key


if TYPE_CHECKING:
    from .report import RobustnessReport

STRONGEST = "strongest"

# Resubmissions of an image, and draws that vote on it.
NUM_TRIES, NUM_VOTES = 10, 11

# Groups whose attacks an attacker may choose from: checks differ in strength or images, cross-checks know the noise.
ATTACK_GROUPS = ("baseline", "white-box", "adaptive", "grid", "approximate", "black-box")


@dataclass(frozen=True)
class Row:
    """Figures of one cell under one sigma of the defense, beside those of the same images without an attack.

    Attributes:
        cell: Name of the cell, or `"strongest"` for the combination of several.
        group: Group of the cell, or `"combined"`.
        attack_sigma: The sigma that the attacker assumed, in units of 0..255 pixels; `None` is the bare classifier.
        defense_sigma: The sigma with which the finished images were classified.
        eps: Radius in units of 0..255 pixels.
        norm: `"Linf"` or `"L2"`.
        fixed_noise: Whether the attacker knew the noise.
        num_images: Number of images.
        num_draws: Fresh noise draws for each of them; 1 where equal images are answered equally.
        accuracy: Mean accuracy of one prediction over images and draws.
        worst_of_10: Share of images that are right in every one of the first ten draws: the attacker resubmits.
        majority_of_11: Share of images whose true class has more votes of the first eleven draws than any other.
        clean: `accuracy` of the same images without an attack.
        clean_worst_of_10: `worst_of_10` of the same images without an attack.
        clean_majority_of_11: `majority_of_11` of the same images without an attack.
        seconds: Time that the cell took; 0 for a combination.
    """

    cell: str
    group: str
    attack_sigma: float | None
    defense_sigma: float | None
    eps: float
    norm: str
    fixed_noise: bool
    num_images: int
    num_draws: int
    accuracy: Accuracy
    worst_of_10: Accuracy
    majority_of_11: Accuracy
    clean: Accuracy
    clean_worst_of_10: Accuracy
    clean_majority_of_11: Accuracy
    seconds: float


@dataclass(frozen=True)
class Strongest:
    """The strongest of several attacks on each image; see [`RobustnessReport.strongest`].

    Attributes:
        row: Its figures.
        candidates: Names of the cells that were compared.
        chosen: For each image the cell that was chosen.
        correct: Whether the predictions of the chosen images are right, shape `(images, draws)`.
    """

    row: Row
    candidates: tuple[str, ...]
    chosen: tuple[str, ...]
    correct: np.ndarray


def make_row(report: "RobustnessReport", cell: Cell, sigma: float | None, predictions: np.ndarray) -> Row:
    """The figures of predictions under one sigma, of shape `(images, draws)`."""
    num_images, num_draws = predictions.shape
    labels = report.labels(num_images)
    figures = measure(predictions, labels)
    twin = CLEAN_NOISE_KNOWN if cell.fixed_noise and CLEAN_NOISE_KNOWN in report.cell_names else CLEAN
    clean = report.predictions(twin, sigma)
    if cell.name == twin:
        clean_figures = figures
    elif num_images == len(clean):
        base = report.row(twin, sigma)
        clean_figures = (base.accuracy, base.worst_of_10, base.majority_of_11)
    else:
        clean_figures = measure(clean[:num_images], labels)
    return Row(
        cell.name,
        cell.group,
        cell.attack_sigma,
        sigma,
        cell.eps,
        cell.norm,
        cell.fixed_noise,
        num_images,
        num_draws,
        *figures,
        *clean_figures,
        seconds=float(sum(record["seconds"] for record in report.records if record["cell"] == cell.name)),
    )


def find_strongest(report: "RobustnessReport", sigma: float | None, eps: float, comparable: bool) -> Strongest:
    """See [`RobustnessReport.strongest`]."""
    cells = [
        cell
        for cell in map(report.cell, report.cell_names)
        if cell.group in ATTACK_GROUPS
        and not cell.fixed_noise
        and (cell.norm, cell.eps) == (report.settings["norm"], eps)
        and sigma in cell.defense_sigmas
    ]
    if comparable:
        cells = _treating_all_alike(cells, report.sigmas)
    if not cells:
        raise ValueError(
            f"no attack was measured with sigma {sigma_key(sigma)} and eps {eps:g}; there are the sigmas"
            f" {[sigma_key(one) for one in report.sigmas]} and the eps {list(report.radii)}"
        )
    predictions = {cell.name: report.predictions(cell.name, sigma) for cell in cells}
    scores = {cell.name: report.scores(cell.name, sigma) for cell in cells}
    num_images = len(predictions.get(HEADLINE, max(predictions.values(), key=len)))
    names = [name for name, own in predictions.items() if len(own) >= num_images]
    chosen = [max(names, key=lambda name: tuple(scores[name][index])) for index in range(num_images)]
    kept = np.array([predictions[name][index] for index, name in enumerate(chosen)])
    combined = Cell(STRONGEST, "combined", STRONGEST, eps, num_images, sigma, (sigma,), norm=report.settings["norm"])
    row = make_row(report, combined, sigma, kept)
    return Strongest(row, tuple(names), tuple(chosen), kept == report.labels(num_images)[:, None])


def _treating_all_alike(cells: Sequence[Cell], sigmas: Sequence[float | None]) -> list[Cell]:
    """Those attacks that were made for every sigma; without such, those that were measured with every sigma."""
    everywhere = [cell for cell in cells if set(sigmas) <= set(cell.defense_sigmas)]
    made_for: dict[tuple[str, str], set[float | None]] = {}
    for cell in everywhere:
        made_for.setdefault((cell.attack, cell.gradient), set()).add(cell.attack_sigma)
    alike = [cell for cell in everywhere if set(sigmas) <= made_for[cell.attack, cell.gradient]]
    return alike or everywhere


def measure(predictions: np.ndarray, labels: np.ndarray) -> tuple[Accuracy, Accuracy, Accuracy]:
    """Accuracies of one draw, of the worst of ten, and of the vote of eleven."""
    correct = predictions == labels[:, None]
    return (
        mean_accuracy(correct),
        _share(correct[:, :NUM_TRIES].all(axis=1)),
        _share(np.array([_wins(own, label) for own, label in zip(predictions[:, :NUM_VOTES], labels)])),
    )


def _wins(votes: np.ndarray, label: int) -> bool:
    """Whether the label has more votes than any other class."""
    others = votes[votes != label]
    most = np.unique(others, return_counts=True)[1].max() if len(others) else 0
    return bool(len(votes) - len(others) > most)


def _share(right: np.ndarray) -> Accuracy:
    mean = float(right.mean())
    low, high = wilson_interval(mean, len(right))
    return Accuracy(mean, min(low, mean), max(high, mean))
