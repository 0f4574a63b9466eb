# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The figures of an evaluation under attack: accuracies, the strongest attack, the trade-off over sigma."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..utils.statistics import Accuracy, Difference, mean_accuracy
from .protocol import AttackConfiguration


# Resubmissions of an image, and noise draws that vote on it.
NUM_TRIES, NUM_VOTES = 10, 11


@dataclass(frozen=True)
class Row:
    """The accuracies under one attack configuration at one sigma of the defense, beside those without an attack.

    Attributes:
        configuration: Name of the attack configuration; `"strongest"` for the combination of several.
        group: Its group, or `"combined"`.
        attack_sigma: The sigma that the attacker assumed, in units of 0..255 pixels; `None` is the bare classifier.
        defense_sigma: The sigma with which the finished images were classified.
        eps: Radius in units of 0..255 pixels.
        norm: `"Linf"` or `"L2"`.
        fixed_noise: Whether the attacker knew the noise.
        num_images: Number of images.
        num_draws: Fresh noise draws per image; 1 where equal images get equal answers.
        accuracy: Mean accuracy of one prediction, over images and draws.
        worst_of_10: Share of images that are right in each of the first ten draws: the attacker resubmits.
        majority_of_11: Share of images whose true class has more votes of the first eleven draws than any other.
        clean: `accuracy` of the same images without an attack.
        clean_worst_of_10: `worst_of_10` of the same images without an attack.
        clean_majority_of_11: `majority_of_11` of the same images without an attack.
        seconds: Time that the attack took; 0 for a combination.
    """

    configuration: str
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
    """The strongest of several attacks on each image; see [`Measurements.strongest`].

    Attributes:
        row: Its accuracies.
        candidates: Names of the attack configurations that were compared.
        chosen: The name chosen for each image.
        correct: Correctness of the chosen images' predictions, shape `(images, draws)`.
    """

    row: Row
    candidates: tuple[str, ...]
    chosen: tuple[str, ...]
    correct: np.ndarray


@dataclass(frozen=True)
class TradeOff:
    """The accuracies at one sigma of the defense.

    Attributes:
        sigma: The sigma in units of 0..255 pixels; `None` is the defense switched off.
        clean: Accuracy without an attack.
        robust: Accuracy under the strongest of the attacks that were made for every sigma alike.
    """

    sigma: float | None
    clean: Accuracy
    robust: Accuracy


@dataclass(frozen=True)
class SigmaChoice(TradeOff):
    """A recommended sigma.

    Attributes:
        indistinguishable: Other allowed sigmas whose robust accuracy cannot be told apart from this one's: the 95 %
            interval of the difference on the same images includes 0.
        against_off: Robust accuracy minus that of the defense switched off, on the same images; `None` if that was not
            measured, or is the choice. If it includes 0, the defense has not been shown to help.
    """

    indistinguishable: tuple[float | None, ...]
    against_off: Difference | None = None


def measure(predictions: np.ndarray, labels: np.ndarray) -> tuple[Accuracy, Accuracy, Accuracy]:
    """Return the accuracies of one draw, of the worst of ten, and of the vote of eleven."""
    correct = predictions == labels[:, None]
    wins = np.array([_wins(own, label) for own, label in zip(predictions[:, :NUM_VOTES], labels)])
    unbroken = correct[:, :NUM_TRIES].all(axis=1)
    return mean_accuracy(correct), mean_accuracy(unbroken[:, None]), mean_accuracy(wins[:, None])


def _wins(votes: np.ndarray, label: int) -> bool:
    """Return whether the label has more votes than any other class."""
    others = votes[votes != label]
    most = np.unique(others, return_counts=True)[1].max() if len(others) else 0
    return bool(len(votes) - len(others) > most)


def treating_all_alike(
    configurations: Sequence[AttackConfiguration], sigmas: Sequence[float | None]
) -> list[AttackConfiguration]:
    """Return the attacks that were made for every sigma; without such, those that were measured with every sigma."""
    everywhere = [one for one in configurations if set(sigmas) <= set(one.defense_sigmas)]
    made_for: dict[tuple[str, str], set[float | None]] = {}
    for one in everywhere:
        made_for.setdefault((one.attack, one.gradient), set()).add(one.attack_sigma)
    alike = [one for one in everywhere if set(sigmas) <= made_for[one.attack, one.gradient]]
    return alike or everywhere


def find_knee(points: Sequence[TradeOff]) -> TradeOff | None:
    """Return the knee of the points that no other beats in both accuracies; see [`Measurements.knee`]."""
    front: list[TradeOff] = []
    for point in sorted(points, key=lambda point: (-point.clean.mean, -point.robust.mean)):
        if not front or point.robust.mean > front[-1].robust.mean:
            front.append(point)
    if len(front) < 3:
        return None
    first, last = front[0], front[-1]

    def height(point: TradeOff) -> float:
        clean = (point.clean.mean - last.clean.mean) / (first.clean.mean - last.clean.mean)
        robust = (point.robust.mean - first.robust.mean) / (last.robust.mean - first.robust.mean)
        return clean + robust - 1

    highest = max(front[1:-1], key=height)
    return highest if height(highest) > 1e-9 else None
