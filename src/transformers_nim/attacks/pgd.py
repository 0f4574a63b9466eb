# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Projected gradient descent on losses that are averaged over the noise of a defense."""

from collections.abc import Callable, Sequence

import torch

from ..utils.seeding import image_seeds
from .geometry import Ball, check_images
from .losses import LOSSES, BestIterates, Objective
from .randomness import Classifier
from .registry import register_attack
from .restarts import BATCH_SIZE, Run, effective_draws, run_restarts


OnStep = Callable[[], object]


@register_attack("eot_pgd")
def eot_pgd(
    classifier: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    eps: float,
    steps: int = 100,
    step_size: float | None = None,
    num_draws: int = 20,
    keep_best: bool = True,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    on_step: OnStep | None = None,
    *,
    norm: str = "Linf",
    seeds: Sequence[int] | None = None,
    losses: Sequence[str] = ("ce", "margin"),
    restarts: int = 3,
) -> torch.Tensor:
    """Untargeted PGD (arXiv 1706.06083) on a loss averaged over draws of the noise (EOT, arXiv 1802.00420).

    Every run starts at a random point of the ball and takes steps of constant length along the steepest direction of
    the mean loss. There are `restarts` runs with each loss, and the best of what they find is chosen on fresh draws;
    see [`run_restarts`]. With one draw, one loss, one restart and `keep_best=False` this is plain PGD.

    Args:
        classifier: Maps pixels of shape `(batch, channels, height, width)` in [0, 1] to logits, with fresh noise in
            every row of the batch; see [`PixelClassifier`].
        pixels: Images with pixels in [0, 1], shape `(batch, channels, height, width)`.
        labels: True classes, shape `(batch,)`, or (for the losses `"ce"` and `"vote"`) probabilities of the classes,
            shape `(batch, classes)`.
        eps: Radius of the ball in pixels of [0, 1], so 8/255 is `8 / 255`.
        steps: Gradient steps of a run.
        step_size: Length of a step in pixels of [0, 1]; `2.5 * eps / steps` by default.
        num_draws: Noise draws over which each gradient is averaged, and on which the runs are compared.
        keep_best: Whether a run returns the iterate whose mean loss (and that whose mean margin) is highest, instead
            of the last. With few draws a lucky one can win.
        batch_size: How many images, these draws counted, pass to the classifier at once. Groups are filled up to it.
        seed: From it and from their positions come the images' seeds, unless `seeds` are given.
        on_step: Called after every gradient step of every group, for progress bars.
        norm: `"Linf"` or `"L2"`.
        seeds: One for each image: of its starts and its noise. What is found for an image depends on its own alone.
            The global random state is as before when the attack is done.
        losses: Each one of `"ce"`, `"margin"`, `"dlr"` or `"vote"`; see [`adversarial_loss`].
        restarts: Runs with each loss.

    Returns:
        Adversarial images in the ball and in [0, 1].

    Raises:
        ValueError: An argument is out of range, or pixels lie outside [0, 1].
        FloatingPointError: The classifier's loss or gradient is not finite.
    """
    ball = Ball(norm, eps)
    seeds = image_seeds(seed, len(pixels)) if seeds is None else seeds
    check_images(pixels, labels, seeds)
    check_counts(steps=steps, restarts=restarts)
    if step_size is not None and not step_size > 0:
        raise ValueError(f"step_size must be positive (in pixels of [0, 1]), got {step_size!r}")
    losses = check_losses(losses)
    num_draws = effective_draws(classifier, num_draws)
    step_size = 2.5 * eps / steps if step_size is None else step_size
    runs = {
        f"pgd/{loss}/{restart}": _pgd_run(
            Objective(classifier, loss, num_draws), ball, steps, step_size, keep_best, on_step
        )
        for restart in range(restarts)
        for loss in losses
    }
    vote = set(losses) == {"vote"}
    return run_restarts(classifier, pixels, labels, seeds, runs, num_draws, batch_size, vote=vote)


@register_attack("pgd")
def pgd(
    classifier: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    eps: float,
    seeds: Sequence[int],
    on_step: OnStep | None = None,
    steps: int = 10,
    step_size: float | None = None,
    batch_size: int = BATCH_SIZE,
) -> torch.Tensor:
    """Plain PGD with one draw of the noise per step and no choice of iterates (arXiv 1706.06083).

    By default the attack of the NIM paper (arXiv 2302.01056): 10 steps of 2/255. Against a random defense it is weak,
    and there for comparison with published figures alone.

    Args:
        classifier: What is attacked; see [`eot_pgd`].
        pixels: Images with pixels in [0, 1], shape `(batch, channels, height, width)`.
        labels: True classes `(batch,)`, or probabilities `(batch, classes)`.
        norm: `"Linf"` or `"L2"`.
        eps: Radius of the ball in pixels of [0, 1].
        seeds: One for each image.
        on_step: Called after every gradient step of every group.
        steps: Gradient steps.
        step_size: Length of a step in pixels of [0, 1]; for Linf 2/255 by default, for L2 `2.5 * eps / steps`.
        batch_size: How many images pass to the classifier at once.

    Returns:
        Adversarial images in the ball and in [0, 1].

    Raises:
        ValueError: An argument is out of range.
    """
    if step_size is None and norm == "Linf":
        step_size = 2 / 255
    return eot_pgd(
        classifier, pixels, labels, eps, steps, step_size, 1, False, batch_size, 0, on_step,
        norm=norm, seeds=seeds, losses=("ce",), restarts=1,
    )  # fmt: skip


@register_attack("fgsm")
def fgsm(
    classifier: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    eps: float,
    seeds: Sequence[int],
    on_step: OnStep | None = None,
    num_draws: int = 1,
    batch_size: int = BATCH_SIZE,
) -> torch.Tensor:
    """One step of length eps along the gradient of the cross entropy, from the clean image (FGSM, arXiv 1412.6572).

    Args:
        classifier: What is attacked; see [`eot_pgd`].
        pixels: Images with pixels in [0, 1], shape `(batch, channels, height, width)`.
        labels: True classes `(batch,)`, or probabilities `(batch, classes)`.
        norm: `"Linf"` (the sign of the gradient) or `"L2"` (the normalized gradient).
        eps: Length of the step in pixels of [0, 1].
        seeds: One for each image.
        on_step: Called after the step of every group.
        num_draws: Noise draws over which the gradient is averaged.
        batch_size: How many images, draws counted, pass to the classifier at once.

    Returns:
        Adversarial images in the ball and in [0, 1].

    Raises:
        ValueError: An argument is out of range.
    """
    num_draws = effective_draws(classifier, num_draws)
    run = _pgd_run(Objective(classifier, "ce", num_draws), Ball(norm, eps), 1, eps, False, on_step, random_start=False)
    return run_restarts(classifier, pixels, labels, seeds, {"fgsm": run}, num_draws, batch_size)


def check_counts(**counts: int) -> None:
    """Checks numbers of steps and the like.

    Raises:
        ValueError: One is not an int of at least 1.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an int of at least 1, got {value!r}")


def check_losses(losses: Sequence[str]) -> tuple[str, ...]:
    """Checks names of losses.

    Raises:
        ValueError: There are none, or one is unknown or there twice.
    """
    names = (losses,) if isinstance(losses, str) else tuple(losses)
    if not names or len(set(names)) < len(names) or not set(names) <= set(LOSSES):
        raise ValueError(f"losses must be one or more different of {list(LOSSES)}, got {list(names)}")
    return names


def _pgd_run(
    objective: Objective,
    ball: Ball,
    steps: int,
    step_size: float,
    keep_best: bool,
    on_step: OnStep | None,
    random_start: bool = True,
) -> Run:
    def run(clean: torch.Tensor, labels: torch.Tensor, generators: list[torch.Generator]) -> list[torch.Tensor]:
        current = ball.random_point(clean, generators) if random_start else clean
        best = BestIterates(objective, labels)
        for _ in range(steps):
            loss, logits, gradient = objective.gradient(current, labels, generators)
            if keep_best:
                best.update(current, loss, logits)
            current = ball.project(clean, current + step_size * ball.steepest(gradient))
            if on_step is not None:
                on_step()
        if not keep_best:
            return [current]
        # The last iterate has to be judged too, for which no gradient is needed.
        with torch.no_grad():
            best.update(current, *objective.draws(current, labels, generators))
        return best.candidates

    return run
