# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Attack training images by projected gradient descent on the loss that is trained on (Madry et al., 1706.06083)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ..attacks.geometry import Ball, warn_of_eps
from .evaluation import eval_mode


@dataclass(frozen=True)
class TrainingAttack:
    """Plain PGD: a start in the ball, steps of constant length, the last iterate. It draws nothing itself.

    Attributes:
        eps: Radius of the ball, in pixels of [0, 1].
        steps: Number of steps.
        step_size: Length of a step, in pixels of [0, 1]; `2.5 * eps / steps` by default.
        norm: `"Linf"` or `"L2"`.
        through_defense: Whether to attack noise, denoiser and classifier, or the classifier alone.
        shared_noise: Whether the attack sees the sigma and noise of the training pass, or draws of its own, which make
            it weaker (docs/experiments.md).
        warmup_steps: Updates over which eps and step size rise linearly from 0.

    Raises:
        ValueError: A number is out of range, or the norm is unknown.
    """

    eps: float
    steps: int
    step_size: float | None = None
    norm: str = "Linf"
    through_defense: bool = True
    shared_noise: bool = True
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        largest = 1 if self.norm == "Linf" else float("inf")
        if (
            not 0 < self.eps <= largest
            or self.steps < 1
            or (self.step_size is not None and not self.step_size > 0)
            or self.warmup_steps < 0
        ):
            raise ValueError(
                "adversarial training needs 0 < eps (for Linf eps <= 1), at least 1 step, a step size > 0 (pixels of"
                " [0, 1]; on the command line in x/255) and a warm-up of at least 0 updates, got"
                f" {self.eps}, {self.steps}, {self.step_size} and {self.warmup_steps}"
            )
        # Its own message for an unknown norm.
        Ball(self.norm, self.eps)
        warn_of_eps(self.norm, 255 * self.eps)

    def __str__(self) -> str:
        through = "defense" if self.through_defense else "classifier"
        noise = ("shared" if self.shared_noise else "independent") if self.through_defense else "no"
        warmup = f", eps warmed up over {self.warmup_steps} updates" if self.warmup_steps else ""
        return f"PGD-{self.steps}, {self.norm} {self.eps * 255:g}/255, through the {through}, {noise} noise{warmup}"

    def __call__(
        self,
        losses_of: Callable[[torch.Tensor], torch.Tensor],
        pixels: torch.Tensor,
        start: torch.Tensor,
        update: int = 0,
    ) -> torch.Tensor:
        """Perturb images so that their losses rise. Nothing here waits for an accelerator.

        Args:
            losses_of: Function from images to the sum of their losses, each of its image alone.
            pixels: Images in [0, 1], shape `(batch, channels, height, width)`, float32.
            start: Start in the ball of radius 1 around zero for each image, in the shape of the images.
            update: Number of updates so far, for the warm-up.

        Returns:
            Adversarial images in [0, 1].
        """
        share = min(1.0, update / self.warmup_steps) if self.warmup_steps else 1.0
        ball = Ball(self.norm, share * self.eps)
        step_size = share * (2.5 * self.eps / self.steps if self.step_size is None else self.step_size)
        current = ball.project(pixels, pixels + ball.eps * start)
        for _ in range(self.steps):
            current.requires_grad_()
            (gradient,) = torch.autograd.grad(losses_of(current), current)
            current = ball.project(pixels, current.detach() + step_size * ball.steepest(gradient))
        return current


@contextmanager
def attacked_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode in a `with` block, and back into its former mode after it.

    Layers with gradient checkpointing keep it, as an attack needs as much memory as a training pass. What is random
    in them is still off.
    """
    with eval_mode(model):
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                # Not of the modules inside: checkpointing asks the layer, dropout asks its own module.
                module.training = True
        yield
