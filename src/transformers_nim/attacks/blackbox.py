# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Attacks that do not differentiate the classifier: none at all, noise, Square, and transfer from another model."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..utils.seeding import image_generators
from .geometry import Ball, check_images, per_image, perturbation_norm
from .losses import adversarial_loss
from .pgd import OnStep, check_counts
from .randomness import Classifier, draw_logits, is_deterministic
from .registry import make_attack, register_attack
from .restarts import BATCH_SIZE, Run, effective_draws, run_restarts


# Section 4.1 and appendix of the paper: after which of 10 000 proposals the share of pixels is halved.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@register_attack("none")
def no_attack(
    classifier: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    eps: float,
    seeds: Sequence[int],
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """The clean images."""
    return pixels.detach().clone()


@register_attack("uniform_noise")
def uniform_noise(
    classifier: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    eps: float,
    seeds: Sequence[int],
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """A uniformly random point of the ball around each image: what a perturbation does that nobody optimized.

    Args:
        classifier: Not asked.
        pixels: Images with pixels in [0, 1], shape `(batch, channels, height, width)`.
        labels: Not looked at.
        norm: `"Linf"` or `"L2"`.
        eps: Radius of the ball in pixels of [0, 1].
        seeds: One for each image.
        on_step: Not called.

    Returns:
        Perturbed images in the ball and in [0, 1].

    Raises:
        ValueError: An argument is out of range.
    """
    ball = Ball(norm, eps)
    check_images(pixels, labels, seeds)
    if not len(pixels):
        return pixels.clone()
    return ball.random_point(pixels.detach(), image_generators(seeds, "uniform_noise", pixels.device))


@register_attack("square")
def square(
    classifier: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    eps: float,
    seeds: Sequence[int],
    on_step: OnStep | None = None,
    num_queries: int = 5000,
    initial_share: float = 0.8,
    restarts: int = 1,
    num_draws: int = 20,
    batch_size: int = BATCH_SIZE,
) -> torch.Tensor:
    """Square (Andriushchenko et al. 2020, arXiv 1912.00049): random search with squares, on averaged margins.

    A proposal repaints one square of the best image so far, each channel by plus or minus eps (for L2: by a bump of
    random sign that is paid for by the rest of the perturbation), and is taken if the margin averaged over the draws
    rises. Proposal and best image are compared under the same noise, fresh for every proposal, so that no image keeps
    its place through a lucky draw. Every draw counts as a query: against a random defense a proposal costs
    `2 * num_draws`.

    Args:
        classifier: What is attacked; only its logits are used.
        pixels: Images with pixels in [0, 1], shape `(batch, channels, height, width)`.
        labels: True classes, shape `(batch,)`.
        norm: `"Linf"` or `"L2"`. The L2 form is simpler than the paper's, which moves norm between two windows.
        eps: Radius of the ball in pixels of [0, 1].
        seeds: One for each image.
        on_step: Called after every proposal of every group.
        num_queries: Predictions per image and restart that the search may ask for.
        initial_share: Share of the pixels that the first square covers, in (0, 1]; it falls as in the paper.
        restarts: Searches, each from other random stripes.
        num_draws: Noise draws over which a margin is averaged.
        batch_size: How many images, draws counted, pass to the classifier at once.

    Returns:
        Adversarial images in the ball and in [0, 1].

    Raises:
        ValueError: An argument is out of range, or there are too few queries for a single proposal.
    """
    ball = Ball(norm, eps)
    check_images(pixels, labels, seeds)
    check_counts(num_queries=num_queries, restarts=restarts)
    if labels.is_floating_point():
        raise ValueError(f"square needs the one true class of each image, got shape {tuple(labels.shape)}")
    if not 0 < initial_share <= 1:
        raise ValueError(f"initial_share must be greater than 0 and at most 1, got {initial_share!r}")
    num_draws = effective_draws(classifier, num_draws)
    cost = 1 if is_deterministic(classifier) else 2 * num_draws
    # Without noise the starting point is asked for once; with noise each proposal asks for the best image anew.
    proposals = (num_queries - (1 if cost == 1 else 0)) // cost
    if proposals < 1:
        raise ValueError(
            f"num_queries must be at least {2 if cost == 1 else cost} for one proposal, got {num_queries}"
        )
    runs = {
        f"square/{restart}": _square_run(classifier, ball, proposals, initial_share, num_draws, on_step)
        for restart in range(restarts)
    }
    return run_restarts(classifier, pixels, labels, seeds, runs, num_draws, batch_size)


@register_attack("transfer")
def transfer(
    classifier: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    eps: float,
    seeds: Sequence[int],
    source: Classifier,
    on_step: OnStep | None = None,
    attack: str = "eot_apgd_ce",
    options: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """Adversarial images made on another model.

    Args:
        classifier: Not asked: the attacker does not know it.
        pixels: Images with pixels in [0, 1], shape `(batch, channels, height, width)`.
        labels: True classes, shape `(batch,)`.
        norm: `"Linf"` or `"L2"`.
        eps: Radius of the ball in pixels of [0, 1].
        seeds: One for each image.
        source: The model that the images are made on, for example an undefended or an adversarially trained one.
        on_step: Handed on.
        attack: Name of the attack on `source`.
        options: Its options.

    Returns:
        Adversarial images in the ball and in [0, 1].

    Raises:
        ValueError: The attack or an option is unknown, or an argument is out of range.
    """
    made = make_attack(attack, **(options or {}))
    return made(source, pixels, labels, norm=norm, eps=eps, seeds=seeds, on_step=on_step)


def square_side(proposal: int, proposals: int, initial_share: float, size: tuple[int, int]) -> int:
    """Side in pixels of the square of a proposal; shares are halved as in the paper, rescaled to `proposals`."""
    position = proposal / proposals * 10_000
    share = initial_share / 2 ** sum(position > halving for halving in _HALVINGS)
    side = round(math.sqrt(share * size[0] * size[1]))
    return min(max(side, 1), *size)


def _square_run(
    classifier: Classifier,
    ball: Ball,
    proposals: int,
    initial_share: float,
    num_draws: int,
    on_step: Callable[[], object] | None,
) -> Run:
    @torch.no_grad()
    def run(clean: torch.Tensor, labels: torch.Tensor, generators: list[torch.Generator]) -> list[torch.Tensor]:
        channels, height, width = clean.shape[1:]

        def margins(images: torch.Tensor, noise: list[torch.Generator]) -> torch.Tensor:
            return adversarial_loss("margin", draw_logits(classifier, images, num_draws, noise), labels)

        def signs(*shape: int) -> torch.Tensor:
            bits = [torch.randint(2, shape, device=clean.device, generator=g) for g in generators]
            return 2 * torch.stack(bits).to(clean.dtype) - 1

        # Vertical stripes of one pixel.
        stripes = signs(channels, 1, width).expand(clean.shape)
        radius = ball.eps if ball.norm == "Linf" else ball.eps / math.sqrt(clean[0].numel())
        best = ball.project(clean, clean + radius * stripes)
        deterministic = is_deterministic(classifier)
        best_margin = margins(best, generators) if deterministic else None

        for proposal in range(proposals):
            side = square_side(proposal, proposals, initial_share, (height, width))
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
            if on_step is not None:
                on_step()
            if best_margin is not None and bool((best_margin > 0).all()):
                break
        return [best]

    return run


def _repaint(
    ball: Ball, clean: torch.Tensor, best: torch.Tensor, inside: torch.Tensor, signs: torch.Tensor
) -> torch.Tensor:
    """The best images with one square of each repainted; `inside` is `(batch, 1, height, width)`."""
    if ball.norm == "Linf":
        return ball.project(clean, torch.where(inside, clean + ball.eps * signs, best))
    # As much norm as a fully perturbed square of this size has, on top of what is there. Projecting it back takes the
    # same share of all pixels.
    share = inside.to(clean.dtype)
    bump = signs * share / per_image(perturbation_norm(share.expand_as(clean), "L2").clamp(min=1))
    grown = best - clean + ball.eps * bump
    length = per_image(perturbation_norm(grown, "L2").clamp(min=1e-12))
    return ball.project(clean, clean + grown * (ball.eps / length))
