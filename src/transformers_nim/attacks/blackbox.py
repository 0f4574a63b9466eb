# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Attacks without gradients of the attacked model: none, random noise, Square, and transfer from another model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..utils.seeding import image_generators
from .geometry import Ball, per_image, perturbation_norm
from .losses import Objective
from .not_finite import note_images
from .randomness import Classifier, Generators, is_deterministic
from .registry import Attack, OnStep, make_attack, register_attack
from .restarts import BATCH_SIZE, effective_draws, run_restarts


# Proposals of 10,000 after which the share of pixels is halved (section 4.1 and appendix of the paper).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@register_attack("none")
@dataclass(frozen=True)
class NoAttack(Attack):
    """The clean images."""

    def _perturb(
        self, classifier: Classifier, pixels: Tensor, labels: Tensor, ball: Ball, seeds: Sequence[int], on_step: OnStep
    ) -> Tensor:
        return pixels.detach().clone()


@register_attack("uniform_noise")
@dataclass(frozen=True)
class UniformNoise(Attack):
    """A uniformly random point of the ball: the effect of a perturbation that nobody optimized."""

    def _perturb(
        self, classifier: Classifier, pixels: Tensor, labels: Tensor, ball: Ball, seeds: Sequence[int], on_step: OnStep
    ) -> Tensor:
        return ball.random_point(pixels.detach(), image_generators(seeds, "uniform_noise", pixels.device))


@register_attack("transfer")
@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """Adversarial images made on another model. The attacked classifier is never asked.

    Attributes:
        source: The classifier on which images are made, such as an undefended or an adversarially trained model.
        attack: Name of the attack on `source`.
        options: Options of that attack.

    Raises:
        ValueError: The attack or an option is unknown, or an option is out of range.
    """

    source: Classifier
    attack: str = "eot_apgd_ce"
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._made()

    def _made(self) -> Attack:
        return make_attack(self.attack, **(self.options or {}))

    def _perturb(
        self, classifier: Classifier, pixels: Tensor, labels: Tensor, ball: Ball, seeds: Sequence[int], on_step: OnStep
    ) -> Tensor:
        attack = self._made()
        return attack(
            self.source, pixels, labels, eps=ball.eps, norm=ball.norm, seeds=seeds, on_step=on_step,
            on_not_finite=note_images,
        )  # fmt: skip


@register_attack("square")
@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Square (Andriushchenko et al. 2020, arXiv 1912.00049): random search with squares, on averaged margins.

    A proposal repaints one square of the best image so far, each channel by plus or minus eps. (For L2 it adds a bump
    of random sign, at the expense of the rest of the perturbation; the paper moves norm between two windows.) It is
    accepted if the margin averaged over the noise draws rises. Proposal and best image are compared under the same
    noise, fresh for every proposal, so that a lucky draw counts once. Every draw counts as a query: against a random
    defense a proposal costs `2 * num_draws`.

    Attributes:
        num_queries: Predictions per image and restart that the search may ask for.
        initial_share: Share of the pixels that the first square covers, in (0, 1]. It falls as in the paper.
        restarts: Searches, each from other random stripes.
        num_draws: Noise draws over which a margin is averaged.
        batch_size: Images, draws counted, that pass to the classifier at once.

    Raises:
        ValueError: An option is out of range.
    """

    num_queries: int = 5000
    initial_share: float = 0.8
    restarts: int = 1
    num_draws: int = 20
    batch_size: int = BATCH_SIZE

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.initial_share <= 1:
            raise ValueError(f"initial_share must be greater than 0 and at most 1, got {self.initial_share!r}")

    def _perturb(
        self, classifier: Classifier, pixels: Tensor, labels: Tensor, ball: Ball, seeds: Sequence[int], on_step: OnStep
    ) -> Tensor:
        if labels.is_floating_point():
            raise ValueError(f"square needs the one true class of each image, got shape {tuple(labels.shape)}")
        num_draws = effective_draws(classifier, self.num_draws)
        cost = 1 if is_deterministic(classifier) else 2 * num_draws
        # Without noise the starting point is asked for once; with noise each proposal asks for the best image anew.
        proposals = (self.num_queries - (1 if cost == 1 else 0)) // cost
        if proposals < 1:
            raise ValueError(f"num_queries must be at least {max(cost, 2)} for one proposal, got {self.num_queries}")
        run = partial(self._run, Objective(classifier, "margin", num_draws), ball, on_step, proposals)
        runs = {f"square/{restart}": run for restart in range(self.restarts)}
        return run_restarts(classifier, pixels, labels, seeds, runs, num_draws, self.batch_size)

    @torch.no_grad()
    def _run(
        self,
        objective: Objective,
        ball: Ball,
        on_step: OnStep,
        proposals: int,
        clean: Tensor,
        labels: Tensor,
        generators: Generators,
    ) -> list[Tensor]:
        channels, height, width = clean.shape[1:]

        def margins(images: Tensor, noise: Generators) -> Tensor:
            return objective.draws(images, labels, noise)[0]

        def signs(*shape: int) -> Tensor:
            bits = [torch.randint(2, shape, device=clean.device, generator=g) for g in generators]
            return 2 * torch.stack(bits).to(clean.dtype) - 1

        # Vertical stripes of one pixel.
        stripes = signs(channels, 1, width).expand(clean.shape)
        radius = ball.eps if ball.norm == "Linf" else ball.eps / math.sqrt(clean[0].numel())
        best = ball.project(clean, clean + radius * stripes)
        best_margin = margins(best, generators) if is_deterministic(objective.classifier) else None

        for proposal in range(proposals):
            side = square_side(proposal, proposals, self.initial_share, (height, width))
            tops = [torch.randint(height - side + 1, (), device=clean.device, generator=g) for g in generators]
            lefts = [torch.randint(width - side + 1, (), device=clean.device, generator=g) for g in generators]
            top, left = torch.stack(tops)[:, None, None], torch.stack(lefts)[:, None, None]
            rows = torch.arange(height, device=clean.device)[None, :, None]
            columns = torch.arange(width, device=clean.device)[None, None, :]
            inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
            painted = _repaint(ball, clean, best, inside[:, None], signs(channels, 1, 1))
            if best_margin is not None:
                margin = margins(painted, generators)
                # A wrong answer of a deterministic classifier stays wrong: that image is done.
                better = (margin > best_margin) & (best_margin <= 0)
                best_margin = torch.where(better, margin, best_margin)
            else:
                seeds = [int(torch.randint(2**31, (), device=clean.device, generator=g)) for g in generators]
                pair = [margins(im, image_generators(seeds, "pair", clean.device)) for im in (painted, best)]
                better = pair[0] > pair[1]
            best = torch.where(per_image(better), painted, best)
            on_step()
            if best_margin is not None and bool((best_margin > 0).all()):
                break
        return [best]


def square_side(proposal: int, proposals: int, initial_share: float, size: tuple[int, int]) -> int:
    """Return the side in pixels of a proposal's square, halving shares as in the paper, rescaled to `proposals`."""
    position = proposal / proposals * 10_000
    share = initial_share / 2 ** sum(position > halving for halving in _HALVINGS)
    side = round(math.sqrt(share * size[0] * size[1]))
    return min(max(side, 1), *size)


def _repaint(ball: Ball, clean: Tensor, best: Tensor, inside: Tensor, signs: Tensor) -> Tensor:
    """Repaint one square of each best image; `inside` has the shape `(batch, 1, height, width)`."""
    if ball.norm == "Linf":
        return ball.project(clean, torch.where(inside, clean + ball.eps * signs, best))
    # A bump of norm eps over the square is added; scaling back to eps takes the same share from all pixels.
    share = inside.to(clean.dtype)
    bump = signs * share / per_image(perturbation_norm(share.expand_as(clean), "L2").clamp(min=1))
    grown = best - clean + ball.eps * bump
    length = per_image(perturbation_norm(grown, "L2").clamp(min=1e-12))
    return ball.project(clean, clean + grown * (ball.eps / length))
