# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Fits an evaluation into a number of minutes, and says what that costs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ..attacks.losses import Objective
from ..utils.seeding import forked_rng, image_generators
from .classifiers import MakeClassifier
from .protocol import Cell, Strength
from .runner import total_cost


# Below these an evaluation says too little to be worth its time.
LEAST_IMAGES, LEAST_DRAWS, LEAST_STEPS, LEAST_QUERIES = 16, 4, 10, 200
# What is kept for loading, writing and plots.
_RESERVE = 0.1


def seconds_per_pass(
    make_classifier: MakeClassifier, pixels: torch.Tensor, sigma: float | None, num_draws: int, rows_per_pass: int
) -> float:
    """Time of one noisy image's way through the network, where one with a gradient counts as two.

    Args:
        make_classifier: The model.
        pixels: One image in [0, 1], shape `(channels, height, width)`.
        sigma: Sigma of the defense.
        num_draws: Draws per image.
        rows_per_pass: Noisy images per pass.
    """
    group = max(1, rows_per_pass // num_draws)
    images, labels = pixels[None].repeat(group, 1, 1, 1), torch.zeros(group, dtype=torch.long, device=pixels.device)
    objective = Objective(make_classifier(sigma, "full", False), "ce", num_draws)
    generators = image_generators(list(range(group)), "timing", pixels.device)

    def measure() -> tuple[float, int]:
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
        measure()
        # The median: a pause of the machine must not decide.
        seconds, rows = sorted(measure() for _ in range(3))[1]
    return seconds / rows


def fit(
    strength: Strength,
    make_cells: Callable[[Strength], Sequence[Cell]],
    seconds: float,
    num_processes: int,
    minutes: float,
) -> tuple[Strength, list[str]]:
    """The strongest evaluation that fits into the time.

    Images go first, down to 16; then restarts, queries, draws and steps; then images once more as before. How many
    images will be lost without an attack, and cost nothing, is not known yet, so a run may end early.

    Args:
        strength: What was asked for.
        make_cells: The cells of a strength.
        seconds: Time of one pass; see [`seconds_per_pass`].
        num_processes: Processes that share the work.
        minutes: The time there is.

    Returns:
        A strength, and sentences that say what was cut.

    Raises:
        ValueError: Not even the weakest evaluation fits.
    """
    if not minutes > 0:
        raise ValueError(f"budget_minutes must be positive, got {minutes!r}")
    available = 60 * minutes * (1 - _RESERVE) * num_processes

    def needed(candidate: Strength) -> float:
        return seconds * sum(cell.num_images * total_cost(cell, candidate) for cell in make_cells(candidate))

    def with_images(candidate: Strength, num_images: int) -> Strength:
        return replace(candidate, num_images=num_images)

    least_images = min(LEAST_IMAGES, strength.num_images)
    reductions = [
        lambda s: replace(s, restarts=1),
        lambda s: replace(s, num_queries=max(min(s.num_queries, LEAST_QUERIES), s.num_queries // 4, 2 * s.num_draws)),
        lambda s: replace(s, num_draws=max(min(s.num_draws, LEAST_DRAWS), s.num_draws // 2)),
        lambda s: replace(s, steps=max(min(s.steps, LEAST_STEPS), s.steps // 2)),
    ]
    chosen, round_number = strength, 0
    while needed(with_images(chosen, least_images)) > available:
        weaker = reductions[round_number % len(reductions)](chosen)
        round_number += 1
        if round_number > 8 * len(reductions):
            minutes_needed = needed(with_images(chosen, least_images)) / available * minutes
            raise ValueError(
                f"budget_minutes={minutes:g} is too little: {least_images} images with {chosen.num_draws} draws and"
                f" {chosen.steps} steps take about {minutes_needed:.0f} minutes; give more time, fewer sigmas or eps"
            )
        chosen = weaker
    low, high = least_images, strength.num_images
    while low < high:
        middle = (low + high + 1) // 2
        if needed(with_images(chosen, middle)) <= available:
            low = middle
        else:
            high = middle - 1
    chosen = with_images(chosen, low)
    names = {"num_images": "images", "restarts": "restarts with each loss", "num_queries": "queries of Square",
             "num_draws": "noise draws per gradient", "steps": "steps"}  # fmt: skip
    cut = [
        f"{getattr(chosen, name)} {text} instead of {getattr(strength, name)}, to fit into {minutes:g} minutes"
        for name, text in names.items()
        if getattr(chosen, name) != getattr(strength, name)
    ]
    return chosen, cut
