# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Projected gradient descent on losses that are averaged over noise draws."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .geometry import Ball
from .losses import BestIterates, Objective
from .randomness import Generators
from .registry import OnStep, register_attack
from .restarts import GradientAttack


@register_attack("eot_pgd")
@dataclass(frozen=True, kw_only=True)
class EOTPGD(GradientAttack):
    """Untargeted PGD (Madry et al., arXiv 1706.06083) on a loss averaged over noise draws.

    A run starts at a random point of the ball and takes steps of constant length along the steepest direction. One
    draw, one loss, one restart and `keep_best=False` make it plain PGD. Further options are those of
    [`GradientAttack`].

    Attributes:
        step_size: Length of a step in pixels of [0, 1]; `2.5 * eps / steps` by default.
        keep_best: Whether a run returns the iterates whose averaged loss and averaged margin are highest, instead of
            the last iterate. With few draws a lucky one can win.
    """

    step_size: float | None = None
    keep_best: bool = True
    _run_name: ClassVar[str] = "pgd/{}/{}"

    def _step_size(self, ball: Ball) -> float:
        return 2.5 * ball.eps / self.steps if self.step_size is None else self.step_size

    def _run(
        self, objective: Objective, ball: Ball, on_step: OnStep, clean: Tensor, labels: Tensor, generators: Generators
    ) -> list[Tensor]:
        current, step_size = ball.random_point(clean, generators), self._step_size(ball)
        best = BestIterates(objective, labels)
        for _ in range(self.steps):
            loss, logits, gradient = objective.gradient(current, labels, generators)
            if self.keep_best:
                best.update(current, loss, logits)
            current = ball.project(clean, current + step_size * ball.steepest(gradient))
            on_step()
        if not self.keep_best:
            return [current]
        # The last iterate has to be judged too, for which no gradient is needed.
        with torch.no_grad():
            best.update(current, *objective.draws(current, labels, generators))
        return best.candidates


@register_attack("pgd")
@dataclass(frozen=True, kw_only=True)
class PGD(EOTPGD):
    """Plain PGD (arXiv 1706.06083) on the cross entropy: one noise draw per step, one run, the last iterate.

    Up to eps = 8/255 the default is the attack of the NIM paper (arXiv 2302.01056): 10 steps of 2/255. Beyond, such
    steps would not reach the border of the ball. Against a random defense it is weak; use it only to compare with
    published figures.

    Attributes:
        steps: Gradient steps.
        step_size: Length of a step in pixels of [0, 1]; by default the larger of 2/255 and `eps / 4` for Linf, and
            `2.5 * eps / steps` for L2.
        batch_size: Images that pass to the classifier at once.
    """

    steps: int = 10
    losses: Sequence[str] = field(default=("ce",), init=False)
    restarts: int = field(default=1, init=False)
    num_draws: int = field(default=1, init=False)
    keep_best: bool = field(default=False, init=False)

    def _step_size(self, ball: Ball) -> float:
        if self.step_size is None and ball.norm == "Linf":
            return max(2 / 255, ball.eps / 4)
        return super()._step_size(ball)


@register_attack("vote")
@dataclass(frozen=True, kw_only=True)
class Vote(EOTPGD):
    """EOT-PGD on the cross entropy of the vote: the mean of the softmax over `num_draws` draws.

    The mean loss of single draws also rises where draws are wrong already; the loss of the vote hardly does.
    """

    losses: Sequence[str] = field(default=("vote",), init=False)
    keep_best: bool = field(default=True, init=False)


@register_attack("fgsm")
@dataclass(frozen=True, kw_only=True)
class FGSM(GradientAttack):
    """One step of length eps from the clean image along the gradient of the cross entropy (arXiv 1412.6572).

    For Linf the sign of the gradient is taken; for L2 the gradient is normalized.

    Attributes:
        num_draws: Noise draws over which the gradient is averaged.
        batch_size: Images, draws counted, that pass to the classifier at once.
    """

    num_draws: int = 1
    losses: Sequence[str] = field(default=("ce",), init=False)
    steps: int = field(default=1, init=False)
    restarts: int = field(default=1, init=False)
    _run_name: ClassVar[str] = "fgsm"

    def _run(
        self, objective: Objective, ball: Ball, on_step: OnStep, clean: Tensor, labels: Tensor, generators: Generators
    ) -> list[Tensor]:
        _, _, gradient = objective.gradient(clean, labels, generators)
        on_step()
        return [ball.project(clean, clean + ball.eps * ball.steepest(gradient))]
