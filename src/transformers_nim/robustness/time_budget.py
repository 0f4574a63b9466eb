# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Fit an evaluation into a number of minutes, and say what had to be cut."""

import time
from dataclasses import replace

import torch

from ..attacks.losses import Objective
from ..utils.seeding import forked_rng, image_generators
from .classifiers import MakeClassifier
from .protocol import AttackBudget, Suite


# Below these an evaluation says too little to be worth its time.
LEAST_IMAGES, LEAST_DRAWS, LEAST_STEPS, LEAST_QUERIES = 16, 4, 10, 200
# Share of the time that is kept for loading, writing and plots.
_RESERVE = 0.1
_WORDS = {
    "num_images": "images",
    "restarts": "restarts with each loss",
    "num_queries": "queries of Square",
    "num_draws": "noise draws per gradient",
    "steps": "steps",
}


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
        The median of three measurements, in seconds.
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


def fit(suite: Suite, seconds: float, num_processes: int, minutes: float) -> tuple[AttackBudget, list[str]]:
    """Find the largest attack budget that fits into the time.

    Images go first, down to 16; then restarts, queries, draws and steps in turns. Last, the number of images rises
    again as far as the time allows. Images that are wrong without an attack cost nothing, and how many these are is
    not known yet, so a run may end early.

    Args:
        suite: The suite, with the budget that was asked for.
        seconds: Time of one pass; see [`seconds_per_pass`].
        num_processes: Processes that share the work.
        minutes: The time there is.

    Returns:
        The attack budget, and sentences that say what was cut.

    Raises:
        ValueError: Not even the smallest budget fits.
    """
    if not minutes > 0:
        raise ValueError(f"budget_minutes must be positive, got {minutes!r}")
    available = 60 * minutes * (1 - _RESERVE) * num_processes

    def needed(budget: AttackBudget, num_images: int) -> float:
        budget = replace(budget, num_images=num_images)
        configurations = replace(suite, budget=budget).configurations()
        return seconds * sum(one.num_images * one.total_cost(budget, suite.num_samples) for one in configurations)

    asked = chosen = suite.budget
    least_images = min(LEAST_IMAGES, asked.num_images)
    reductions = [
        lambda b: replace(b, restarts=1),
        lambda b: replace(b, num_queries=max(min(b.num_queries, LEAST_QUERIES), b.num_queries // 4, 2 * b.num_draws)),
        lambda b: replace(b, num_draws=max(min(b.num_draws, LEAST_DRAWS), b.num_draws // 2)),
        lambda b: replace(b, steps=max(min(b.steps, LEAST_STEPS), b.steps // 2)),
    ]
    round_number = 0
    while needed(chosen, least_images) > available:
        smaller = reductions[round_number % len(reductions)](chosen)
        round_number += 1
        if round_number > 8 * len(reductions):
            raise ValueError(
                f"budget_minutes={minutes:g} is too little: {least_images} images with {chosen.num_draws} draws and"
                f" {chosen.steps} steps take about {needed(chosen, least_images) / available * minutes:.0f} minutes;"
                " give more time, fewer sigmas or eps, or leave AutoAttack out if it is among the attacks"
            )
        chosen = smaller
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
