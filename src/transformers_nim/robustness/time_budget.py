# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Fit an evaluation into a number of minutes, and say what had to be cut."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ..attacks.losses import Objective
from ..utils.seeding import forked_rng, image_generators
from ..utils.text_table import plural
from .classifiers import MakeClassifier
from .protocol import BUDGETS, AttackBudget, Suite


# Below these an evaluation says too little to be worth its time.
LEAST_IMAGES, LEAST_DRAWS, LEAST_STEPS, LEAST_QUERIES = 16, 4, 10, 200
# Share of the time that is kept for loading, writing and plots.
_RESERVE = 0.1
# What an advised budget leaves free besides: the next timing may be slower.
_MARGIN = 0.2
# Seconds for a pass of one image from which on nothing else is timed.
_SLOW = 1.0
_WORDS = {
    "num_images": "images",
    "restarts": "restarts with each loss",
    "num_queries": "queries of Square",
    "num_draws": "noise draws per gradient",
    "steps": "steps",
}


class TooLittleTimeError(ValueError):
    """The time is too little for the smallest evaluation that says something.

    Its text tells what would fit, as arguments of [`evaluate_robustness`].

    Attributes:
        reason: What does not fit, in one sentence.
        minutes: Minutes from which on it fits.
        smaller: Arguments that fit into the time there is, by name; empty if nothing does.
    """

    def __init__(self, reason: str, minutes: int, smaller: Mapping[str, Any]) -> None:
        self.reason, self.minutes, self.smaller = reason, minutes, dict(smaller)
        budget = {name: value for name, value in self.smaller.items() if name in _WORDS and name != "num_images"}
        others = {name: value for name, value in self.smaller.items() if name not in budget}
        arguments = others | ({"budget": budget} if budget else {})
        shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        super().__init__(self._text("budget_minutes", "=", shown))

    def as_options(self) -> str:
        """Return the text with options of the command line instead of arguments."""
        words: list[str] = []
        for name, value in self.smaller.items():
            words.append("--max_eval_samples" if name == "num_images" else f"--{name}")
            # A list is one that became empty.
            words += [] if isinstance(value, list) else [str(value)]
        return self._text("--budget_minutes", " ", " ".join(words))

    def _text(self, name: str, separator: str, smaller: str) -> str:
        # Without the budget, as a second timing may be slower.
        fits = f" In the time there is, without {name}, you can run: {smaller}" if smaller else ""
        return f"{self.reason} Pass {name}{separator}{self.minutes}, which leaves a margin.{fits}"


@dataclass(frozen=True)
class Pace:
    """Seconds per noisy image in a pass; one with a gradient counts as two.

    Attributes:
        search: Of an attack on the random defense, which may search in lower precision.
        judge: Of everything else.
    """

    search: float
    judge: float

    def seconds(self, suite: Suite, budget: AttackBudget, num_images: int) -> float:
        """Return the time of an evaluation with a budget on so many images."""
        budget = replace(budget, num_images=num_images)
        total = 0.0
        for one in replace(suite, budget=budget).configurations():
            searching, judging = one.costs(budget, suite.num_samples)
            pace = self.judge if one.is_deterministic else self.search
            total += one.num_images * (pace * searching + self.judge * judging)
        return total


def seconds_per_pass(
    make_classifier: MakeClassifier, pixels: torch.Tensor, sigma: float | None, num_draws: int, rows_per_pass: int
) -> float:
    """Measure the time of one noisy image in a pass; a pass with a gradient counts as two.

    Args:
        make_classifier: The model, with predictions of one noise draw.
        pixels: One image in [0, 1], shape `(channels, height, width)`.
        sigma: Sigma of the defense in units of 0..255 pixels.
        num_draws: Noise draws per image.
        rows_per_pass: Noisy images per pass.

    Returns:
        The median of three measurements, in seconds; the smaller of two if the model is slow.
    """
    objective = Objective(make_classifier(sigma, "full", False), "ce", num_draws)

    def measure(group: int) -> tuple[float, int]:
        images = pixels[None].repeat(group, 1, 1, 1)
        labels = torch.zeros(group, dtype=torch.long, device=pixels.device)
        generators = image_generators(list(range(group)), "timing", pixels.device)
        started = time.perf_counter()
        try:
            _, logits, _ = objective.gradient(images, labels, generators)
            passes = 2
        except ValueError:
            with torch.no_grad():
                _, logits = objective.draws(images, labels, generators)
            passes = 1
        # Waits for the device.
        logits.sum().item()
        return (time.perf_counter() - started) / passes, logits.shape[0] * logits.shape[1]

    with forked_rng(pixels.device):
        measure(1)
        seconds, rows = measure(1)
        if seconds >= _SLOW:
            # A pause of the machine must not decide.
            seconds, rows = min((seconds, rows), measure(1))
        # A large model on a CPU takes minutes for a full pass, and one image tells its speed as well.
        if seconds < _SLOW:
            group = max(1, rows_per_pass // num_draws)
            measure(group)
            # The median, for the same reason.
            seconds, rows = sorted(measure(group) for _ in range(3))[1]
    return seconds / rows


def fit_suite(suite: Suite, pace: Pace, num_processes: int, minutes: float) -> tuple[Suite, list[str]]:
    """Find the largest suite that fits into the time; see [`fit`].

    If not even the smallest attack budget fits, further eps go, and then further sigmas of the defense but off.

    Returns:
        The suite, and sentences that say what was cut.

    Raises:
        TooLittleTimeError: Not even the smallest suite fits.
    """
    narrower, cut_grids = suite, []
    try:
        budget, cut = fit(suite, pace, num_processes, minutes)
        return replace(suite, budget=budget), cut
    except TooLittleTimeError as error:
        first = least = error
    grids: dict[str, Sequence[float | None]] = {"eps_grid": suite.eps_grid, "sigmas": suite.model.sigmas}
    for name, values in grids.items():
        left: Sequence[float | None] = () if name == "eps_grid" or not values else (None,)
        if len(values) <= len(left):
            continue
        if name == "eps_grid":
            narrower = replace(narrower, eps_grid=())
        else:
            narrower = replace(narrower, model=replace(narrower.model, sigmas=left))
        shown = ", ".join("off" if value is None else f"{value:g}" for value in values)
        kept = "the defense off as the only further sigma" if left else "no further eps"
        cut_grids.append(f"{kept} instead of {shown}, to fit into {minutes:g} minutes")
        try:
            budget, cut = fit(narrower, pace, num_processes, minutes)
        except TooLittleTimeError as error:
            least = error
            continue
        return replace(narrower, budget=budget), [*cut_grids, *cut]
    # The time is that of the smallest suite; the arguments are changes of the one that was asked for.
    raise TooLittleTimeError(least.reason, least.minutes, first.smaller)


def fit(suite: Suite, pace: Pace, num_processes: int, minutes: float) -> tuple[AttackBudget, list[str]]:
    """Find the largest attack budget that fits into the time.

    Images go first, down to 16; then restarts, queries, draws and steps in turns. Last, the number of images rises
    again as far as the time allows. Images that are wrong without an attack cost nothing, those that an attack has
    broken little, and how many these are is not known yet, so a run may end early.

    Args:
        suite: The suite, with the budget that was asked for.
        pace: Times of a pass.
        num_processes: Processes that share the work.
        minutes: The time there is.

    Returns:
        The attack budget, and sentences that say what was cut.

    Raises:
        TooLittleTimeError: Not even the smallest budget fits.
    """
    if not minutes > 0:
        raise ValueError(f"budget_minutes must be positive, got {minutes!r}")
    available = 60 * minutes * (1 - _RESERVE) * num_processes

    def needed(budget: AttackBudget, num_images: int) -> float:
        return pace.seconds(suite, budget, num_images)

    asked = chosen = suite.budget
    least_images, smallest = min(LEAST_IMAGES, asked.num_images), _smallest(asked)
    if needed(smallest, least_images) > available:
        raise _too_little(suite, minutes, needed(smallest, least_images) / available * minutes, available, pace)
    round_number = 0
    while needed(chosen, least_images) > available:
        chosen = _REDUCTIONS[round_number % len(_REDUCTIONS)](chosen)
        round_number += 1
    low, high = least_images, asked.num_images
    while low < high:
        middle = (low + high + 1) // 2
        if needed(chosen, middle) <= available:
            low = middle
        else:
            high = middle - 1
    chosen = replace(chosen, num_images=low)
    cut = [
        f"{getattr(chosen, name)} {text} instead of {getattr(asked, name)}, to fit into {minutes:g} minutes"
        for name, text in _WORDS.items()
        if getattr(chosen, name) != getattr(asked, name)
    ]
    return chosen, cut


_REDUCTIONS = (
    lambda b: replace(b, restarts=1),
    lambda b: replace(b, num_queries=max(min(b.num_queries, LEAST_QUERIES), b.num_queries // 4, 2 * b.num_draws)),
    lambda b: replace(b, num_draws=max(min(b.num_draws, LEAST_DRAWS), b.num_draws // 2)),
    lambda b: replace(b, steps=max(min(b.steps, LEAST_STEPS), b.steps // 2)),
)


def _smallest(budget: AttackBudget) -> AttackBudget:
    """Return the budget that no reduction makes smaller."""
    smaller = budget
    for reduce in _REDUCTIONS:
        smaller = reduce(smaller)
    return budget if smaller == budget else _smallest(smaller)


def _too_little(
    suite: Suite, minutes: float, needed_minutes: float, available: float, pace: Pace
) -> TooLittleTimeError:
    """Return the error that says what would fit.

    Args:
        suite: What was asked for.
        minutes: The time there is.
        needed_minutes: What the smallest budget needs.
        available: Seconds that there are, of all processes together.
        pace: Times of a pass.
    """
    smallest = _smallest(suite.budget)
    num_images = min(LEAST_IMAGES, suite.budget.num_images)
    reason = (
        f"{minutes:g} minutes are too little: the least that says something, {plural(num_images, 'image')} with"
        f" {plural(smallest.steps, 'step')} and {plural(smallest.num_draws, 'noise draw')} per gradient, takes about"
        f" {math.ceil(needed_minutes)} minutes here."
    )
    candidates: list[dict[str, Any]] = [{}, {"eps_grid": []}, {"sigmas": [], "eps_grid": []}]
    if suite.name != "quick":
        candidates += [{"suite": "quick", **one} for one in candidates]
    best: tuple[int, dict[str, Any]] = (0, {})
    for changes in candidates:
        asked = BUDGETS[changes["suite"]] if "suite" in changes else suite.budget
        budget = _smallest(asked)
        sigmas = suite.model.sigmas if "sigmas" not in changes or not suite.model.sigmas else [None]
        smaller = replace(
            suite, name=changes.get("suite", suite.name), model=replace(suite.model, sigmas=sigmas),
            eps_grid=changes.get("eps_grid", suite.eps_grid),
        )  # fmt: skip
        fitting = [
            n for n in range(1, num_images + 1) if pace.seconds(smaller, budget, n) <= (1 - _MARGIN) * available
        ]
        # The first that allows most images: it changes least.
        if fitting and fitting[-1] > best[0]:
            reduced = {name: value for name, value in asdict(budget).items() if value != getattr(asked, name)}
            best = (fitting[-1], changes | {"num_images": fitting[-1]} | reduced)
    return TooLittleTimeError(reason, math.ceil((1 + _MARGIN) * needed_minutes), best[1])
