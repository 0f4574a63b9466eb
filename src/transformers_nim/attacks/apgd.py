# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Auto-PGD (Croce and Hein 2020, arXiv 2003.01690) on losses that are averaged over noise draws.

Step sizes, momentum and checkpoints are those of the paper's algorithm 1. Everything that it decides by a loss (which
point is best, whether steps are too long) is decided by the mean over the draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ..model.checks_nim import check_counts
from ..model.outputs_nim import combine_draws
from ..utils.seeding import forked_rng, image_generators
from .geometry import Ball, per_image
from .losses import BestIterates, Objective
from .randomness import Classifier, Generators, draw_logits
from .registry import OnStep, register_attack
from .restarts import GradientAttack, effective_draws, run_restarts


# Section 3 of the paper: the weight of the new step against momentum, and the share of steps that must raise the loss.
_NEW_STEP, _ENOUGH_RISES = 0.75, 0.75


def checkpoints(steps: int) -> list[int]:
    """Return the steps after which step sizes are judged (section 3 of the paper).

    The first comes after 22 % of all steps. Each further distance is 3 % shorter, and at least 6 %.
    """
    # In whole percents, as sums of 0.22, 0.19 and so on are rounded.
    position, distance, found = 0, 22, set()
    while position + distance <= 100:
        position += distance
        found.add(math.ceil(position * steps / 100))
        distance = max(distance - 3, 6)
    return sorted(found)


@dataclass(frozen=True, kw_only=True)
class EOTAPGD(GradientAttack):
    """Auto-PGD with averaged gradients and averaged acceptance.

    Options are those of [`GradientAttack`]. For the names `eot_apgd_ce` and `eot_apgd_dlr` the loss is fixed.
    """

    losses: Sequence[str] = ("ce",)
    _run_name: ClassVar[str] = "apgd/{}/{}"

    def _run(
        self, objective: Objective, ball: Ball, on_step: OnStep, clean: Tensor, labels: Tensor, generators: Generators
    ) -> list[Tensor]:
        last_of_period = checkpoints(self.steps)
        best = BestIterates(objective, labels)
        current = previous = ball.random_point(clean, generators)
        loss, logits, gradient = objective.gradient(current, labels, generators)
        best.update(current, loss, logits)
        best_loss, best_gradient = loss, gradient
        step_size = torch.full_like(loss, 2 * ball.eps).to(clean.dtype)
        rises = torch.zeros_like(loss)
        loss_at_checkpoint, was_halved, period_start = loss, torch.ones_like(loss, dtype=torch.bool), 0

        for step in range(1, self.steps + 1):
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
                # Steps were too long for these images: go on from the best point with shorter ones.
                current = torch.where(per_image(was_halved), best.images[objective.loss], current)
                gradient = torch.where(per_image(was_halved), best_gradient, gradient)
                loss = torch.where(was_halved, best_loss, loss)
                loss_at_checkpoint, period_start = best_loss, step
                rises = torch.zeros_like(rises)
            on_step()
        return best.candidates


@register_attack("eot_apgd_ce")
@dataclass(frozen=True, kw_only=True)
class EOTAPGDCE(EOTAPGD):
    """[`EOTAPGD`] on the cross entropy."""

    losses: Sequence[str] = field(default=("ce",), init=False)


@register_attack("eot_apgd_dlr")
@dataclass(frozen=True, kw_only=True)
class EOTAPGDDLR(EOTAPGD):
    """[`EOTAPGD`] on the untargeted DLR loss, which needs at least 3 classes."""

    losses: Sequence[str] = field(default=("dlr",), init=False)


@register_attack("apgd_t")
@dataclass(frozen=True, kw_only=True)
class TargetedAPGD(EOTAPGD):
    """Auto-PGD on the targeted DLR loss, once for each of the most likely other classes of the clean image.

    It is the part `"apgd-t"` of AutoAttack (arXiv 2003.01690) and needs at least 4 classes. Of what the runs find,
    the image with the highest untargeted margin is returned. With a random classifier, each run finds the likely
    classes anew by the mean probability over `num_draws` draws. Further options are those of [`GradientAttack`].

    Attributes:
        num_targets: Other classes to reach, the most likely first; all of them if there are fewer.
        restarts: Runs for each class.
    """

    num_targets: int = 9
    restarts: int = 1
    losses: Sequence[str] = field(default=("dlr",), init=False)
    _run_name: ClassVar[str] = "apgd_t/{}/{}"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(num_targets=self.num_targets)

    def _perturb(
        self, classifier: Classifier, pixels: Tensor, labels: Tensor, ball: Ball, seeds: Sequence[int], on_step: OnStep
    ) -> Tensor:
        objective = Objective(classifier, "dlr", effective_draws(classifier, self.num_draws))
        with forked_rng(pixels.device), torch.no_grad():
            generators = image_generators(seeds[:1], "classes", pixels.device)
            num_classes = draw_logits(classifier, pixels[:1], 1, generators).shape[-1]
        if num_classes < 4:
            raise ValueError(f"the targeted DLR loss needs at least 4 classes, the classifier has {num_classes}")
        runs = {
            self._run_name.format(rank, restart): partial(self._run_to, rank, objective, ball, on_step)
            for restart in range(self.restarts)
            for rank in range(min(self.num_targets, num_classes - 1))
        }
        return run_restarts(classifier, pixels, labels, seeds, runs, objective.num_draws, self.batch_size)

    def _run_to(
        self,
        rank: int,
        objective: Objective,
        ball: Ball,
        on_step: OnStep,
        clean: Tensor,
        labels: Tensor,
        generators: Generators,
    ) -> list[Tensor]:
        """Return what one run finds towards the other class of this rank, 0 for the most likely."""
        with torch.no_grad():
            logits = combine_draws(objective.draws(clean, labels, generators)[1], "mean")
        others = logits.scatter(1, labels[:, None], -torch.inf)
        targets = others.argsort(dim=1, descending=True, stable=True)[:, rank]
        return self._run(replace(objective, targets=targets), ball, on_step, clean, labels, generators)
