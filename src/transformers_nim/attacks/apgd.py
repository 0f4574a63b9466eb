# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Auto-PGD (Croce and Hein 2020, arXiv 2003.01690) on losses that are averaged over the noise of a defense.

Step sizes, momentum and checkpoints are those of the paper's algorithm 1. Everything that it decides by a loss (which
point is best, whether steps are too long) is decided by the mean over the draws.
"""

import math
from collections.abc import Sequence

import torch

from ..utils.seeding import image_seeds
from .geometry import Ball, check_images, per_image
from .losses import BestIterates, Objective
from .pgd import OnStep, check_counts, check_losses
from .randomness import Classifier
from .registry import register_attack
from .restarts import BATCH_SIZE, Run, effective_draws, run_restarts


# Section 3 of the paper: weight of the new step against momentum, and the share of steps that must raise the loss.
_NEW_STEP, _ENOUGH_RISES = 0.75, 0.75


def checkpoints(steps: int) -> list[int]:
    """The steps after which step sizes are judged: the first after 22 %, further ones at shrinking distances.

    Each distance is 3 % of all steps less than the one before, and at least 6 % (section 3 of the paper).
    """
    # In whole percents: sums of 0.22, 0.19 and so on end up beside the multiples that they are.
    position, distance, found = 0, 22, set()
    while position + distance <= 100:
        position += distance
        found.add(math.ceil(position * steps / 100))
        distance = max(distance - 3, 6)
    return sorted(found)


def eot_apgd(
    classifier: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    eps: float,
    seeds: Sequence[int] | None = None,
    on_step: OnStep | None = None,
    losses: Sequence[str] = ("ce",),
    steps: int = 100,
    restarts: int = 3,
    num_draws: int = 20,
    batch_size: int = BATCH_SIZE,
) -> torch.Tensor:
    """Auto-PGD with averaged gradients and averaged acceptance.

    Args:
        classifier: What is attacked; see [`eot_pgd`].
        pixels: Images with pixels in [0, 1], shape `(batch, channels, height, width)`.
        labels: True classes `(batch,)`, or (for the losses `"ce"` and `"vote"`) probabilities `(batch, classes)`.
        norm: `"Linf"` or `"L2"`.
        eps: Radius of the ball in pixels of [0, 1].
        seeds: One for each image; by default those of seed 0.
        on_step: Called after every gradient step of every group.
        losses: Each one of `"ce"`, `"margin"`, `"dlr"` or `"vote"`; see [`adversarial_loss`].
        steps: Gradient steps of a run.
        restarts: Runs with each loss, each from another random start. What they find is compared on fresh draws.
        num_draws: Noise draws over which gradients and losses are averaged.
        batch_size: How many images, draws counted, pass to the classifier at once. Groups are filled up to it.

    Returns:
        Adversarial images in the ball and in [0, 1].

    Raises:
        ValueError: An argument is out of range, or a loss does not fit the number of classes.
        FloatingPointError: The classifier's loss or gradient is not finite.
    """
    ball = Ball(norm, eps)
    seeds = image_seeds(0, len(pixels)) if seeds is None else seeds
    check_images(pixels, labels, seeds)
    check_counts(steps=steps, restarts=restarts)
    losses = check_losses(losses)
    num_draws = effective_draws(classifier, num_draws)
    runs = {
        f"apgd/{loss}/{restart}": _apgd_run(Objective(classifier, loss, num_draws), ball, steps, on_step)
        for restart in range(restarts)
        for loss in losses
    }
    vote = set(losses) == {"vote"}
    return run_restarts(classifier, pixels, labels, seeds, runs, num_draws, batch_size, vote=vote)


@register_attack("eot_apgd_ce")
def eot_apgd_ce(
    classifier: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    eps: float,
    seeds: Sequence[int],
    on_step: OnStep | None = None,
    steps: int = 100,
    restarts: int = 3,
    num_draws: int = 20,
    batch_size: int = BATCH_SIZE,
) -> torch.Tensor:
    """[`eot_apgd`] on the cross entropy; arguments, returns and errors are the same."""
    return eot_apgd(
        classifier, pixels, labels, norm=norm, eps=eps, seeds=seeds, on_step=on_step, losses=("ce",), steps=steps,
        restarts=restarts, num_draws=num_draws, batch_size=batch_size,
    )  # fmt: skip


@register_attack("eot_apgd_dlr")
def eot_apgd_dlr(
    classifier: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    eps: float,
    seeds: Sequence[int],
    on_step: OnStep | None = None,
    steps: int = 100,
    restarts: int = 3,
    num_draws: int = 20,
    batch_size: int = BATCH_SIZE,
) -> torch.Tensor:
    """[`eot_apgd`] on the untargeted DLR loss, which needs at least 3 classes; arguments and returns are the same."""
    return eot_apgd(
        classifier, pixels, labels, norm=norm, eps=eps, seeds=seeds, on_step=on_step, losses=("dlr",), steps=steps,
        restarts=restarts, num_draws=num_draws, batch_size=batch_size,
    )  # fmt: skip


def _apgd_run(objective: Objective, ball: Ball, steps: int, on_step: OnStep | None) -> Run:
    last_of_period = checkpoints(steps)

    def run(clean: torch.Tensor, labels: torch.Tensor, generators: list[torch.Generator]) -> list[torch.Tensor]:
        best = BestIterates(objective, labels)
        current = previous = ball.random_point(clean, generators)
        loss, logits, gradient = objective.gradient(current, labels, generators)
        best.update(current, loss, logits)
        best_loss, best_gradient = loss, gradient
        step_size = torch.full_like(loss, 2 * ball.eps).to(clean.dtype)
        rises = torch.zeros_like(loss)
        loss_at_checkpoint, was_halved, period_start = loss, torch.ones_like(loss, dtype=torch.bool), 0

        for step in range(1, steps + 1):
            target = ball.project(clean, current + per_image(step_size) * ball.steepest(gradient))
            if step > 1:
                target = current + _NEW_STEP * (target - current) + (1 - _NEW_STEP) * (current - previous)
                target = ball.project(clean, target)
            previous, current = current, target
            last_loss = loss
            loss, logits, gradient = objective.gradient(current, labels, generators)
            rises += loss > last_loss
            improved = best.update(current, loss, logits)
            best_loss = torch.where(improved, loss, best_loss)
            best_gradient = torch.where(per_image(improved), gradient, best_gradient)

            if step in last_of_period:
                too_long = rises < _ENOUGH_RISES * (step - period_start)
                stuck = ~was_halved & (best_loss <= loss_at_checkpoint)
                was_halved = too_long | stuck
                step_size = torch.where(was_halved, step_size / 2, step_size)
                # Steps were too long here: go on from the best point with shorter ones.
                current = torch.where(per_image(was_halved), best.images[objective.loss], current)
                gradient = torch.where(per_image(was_halved), best_gradient, gradient)
                loss = torch.where(was_halved, best_loss, loss)
                loss_at_checkpoint, period_start = best_loss, step
                rises = torch.zeros_like(rises)
            if on_step is not None:
                on_step()
        return best.candidates

    return run
