# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Attacks made for noisy image modeling: perturbations that denoising lets through, and an attack on the vote.

A denoiser removes what looks like noise. Smooth perturbations do not. And with `patch_statistics="input"` brightness
and contrast of each patch never pass through the noise at all.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from .geometry import Ball, check_images, per_image, perturbation_norm
from .losses import BestIterates, Objective
from .pgd import OnStep, check_counts, check_losses, eot_pgd
from .randomness import Classifier
from .registry import register_attack
from .restarts import BATCH_SIZE, Run, effective_draws, run_restarts


class Family(ABC):
    """A family of perturbations, linear in its parameters, around a group of clean images of norm at most 1.

    The attack's ball has the radius eps; its perturbations are eps times these.
    """

    norm: str

    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameters of one image."""

    @abstractmethod
    def perturbation(self, parameters: torch.Tensor) -> torch.Tensor:
        """Parameters of shape `(batch, *shape)` to perturbations of the images' shape; linear."""

    @abstractmethod
    def project(self, parameters: torch.Tensor) -> torch.Tensor:
        """Parameters whose perturbations have a norm of at most 1."""

    def steepest(self, slope: torch.Tensor) -> torch.Tensor:
        """The direction of parameters along which a function with this slope rises fastest."""
        return Ball(self.norm, 1.0).steepest(slope)


class PatchStatistics(Family):
    """Brightness and contrast of patches: `contrast * (x - mean of the patch) + brightness`.

    Both directions are scaled, such that for Linf `|contrast| + |brightness| <= 1` in every patch means that the norm
    is at most 1, and for L2 the norm is that of all parameters.
    """

    def __init__(self, clean: torch.Tensor, norm: str, patch_shape: tuple[int, int]) -> None:
        height, width = patch_shape
        self.norm, self.patch_shape = norm, patch_shape
        # (batch, channels, rows, height, columns, width)
        patches = clean.unflatten(3, (-1, width)).unflatten(2, (-1, height))
        contrast = patches - patches.mean(dim=(1, 3, 5), keepdim=True)
        if norm == "Linf":
            size, self.brightness = contrast.abs().amax(dim=(1, 3, 5), keepdim=True), 1.0
        else:
            size = torch.linalg.vector_norm(contrast, dim=(1, 3, 5), keepdim=True)
            self.brightness = (clean.shape[1] * height * width) ** -0.5
        # A patch of one color has no contrast to change. Its deviations are rounding, and stay what they are.
        self.contrast = contrast / torch.where(size > 1e-6, size, torch.inf)

    def shape(self) -> tuple[int, ...]:
        return (2, self.contrast.shape[2], self.contrast.shape[4])

    def perturbation(self, parameters: torch.Tensor) -> torch.Tensor:
        contrast, brightness = (part[:, None, :, None, :, None] for part in parameters.unbind(dim=1))
        delta = contrast * self.contrast + brightness * self.brightness
        return delta.flatten(4, 5).flatten(2, 3)

    def project(self, parameters: torch.Tensor) -> torch.Tensor:
        if self.norm == "L2":
            return parameters / per_image(perturbation_norm(parameters, "L2").clamp(min=1))
        # The nearest point with |contrast| + |brightness| <= 1 takes the same from both, as long as there is any.
        size = parameters.abs()
        excess = (size.sum(dim=1, keepdim=True) - 1).clamp(min=0) / 2
        taken = torch.where((size < excess).any(dim=1, keepdim=True), size.amin(dim=1, keepdim=True), excess)
        return parameters.sign() * (size - taken).clamp(min=0, max=1)

    def steepest(self, slope: torch.Tensor) -> torch.Tensor:
        if self.norm == "L2":
            return super().steepest(slope)
        # Of brightness and contrast, which share the norm, the one that does more. A sign for each would move the
        # other at full length too, even where all it has of a slope is rounding.
        return slope.sign() * (slope.abs() >= slope.abs().amax(dim=1, keepdim=True))


class LowFrequency(Family):
    """Perturbations of a low resolution, scaled up to the image by bilinear interpolation."""

    def __init__(self, clean: torch.Tensor, norm: str, resolution: int) -> None:
        self.norm, self.size = norm, clean.shape[-2:]
        self.low_shape = (clean.shape[1], resolution, resolution)

    def shape(self) -> tuple[int, ...]:
        return self.low_shape

    def perturbation(self, parameters: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(parameters, size=self.size, mode="bilinear", align_corners=False)

    def project(self, parameters: torch.Tensor) -> torch.Tensor:
        if self.norm == "Linf":
            # Interpolation takes averages, which are no larger than what they are of.
            return parameters.clamp(-1, 1)
        norm = perturbation_norm(self.perturbation(parameters), "L2")
        return parameters / per_image(norm.clamp(min=1))


@register_attack("patch_statistics")
def patch_statistics(
    classifier: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    eps: float,
    seeds: Sequence[int],
    on_step: OnStep | None = None,
    patch_size: int | tuple[int, int] | None = None,
    losses: Sequence[str] = ("ce", "margin"),
    steps: int = 100,
    restarts: int = 3,
    num_draws: int = 20,
    batch_size: int = BATCH_SIZE,
) -> torch.Tensor:
    """EOT-PGD that changes nothing but brightness and contrast of each patch: `a * (x - mean) + mean + b`.

    Made against `patch_statistics="input"`, with which mean and standard deviation of every patch of the image bypass
    the noise.

    Args:
        classifier: What is attacked; see [`eot_pgd`].
        pixels: Images with pixels in [0, 1], shape `(batch, channels, height, width)`.
        labels: True classes, shape `(batch,)`.
        norm: `"Linf"` or `"L2"`.
        eps: Radius of the ball in pixels of [0, 1].
        seeds: One for each image.
        on_step: Called after every gradient step of every group.
        patch_size: Height and width of the patches in pixels; those of the classifier's model by default.
        losses: Each one of `"ce"`, `"margin"`, `"dlr"` or `"vote"`.
        steps: Gradient steps of a run.
        restarts: Runs with each loss.
        num_draws: Noise draws over which gradients and losses are averaged.
        batch_size: How many images, draws counted, pass to the classifier at once.

    Returns:
        Adversarial images in the ball and in [0, 1]. Where a pixel would leave [0, 1] it is cut.

    Raises:
        ValueError: An argument is out of range, the patches are unknown or do not tile the images.
    """
    shape = patch_size if patch_size is not None else getattr(classifier, "patch_shape", None)
    if shape is None:
        raise ValueError("the classifier does not tell the size of its patches; pass patch_size")
    patch_shape = (shape, shape) if isinstance(shape, int) else (shape[0], shape[1])
    if min(patch_shape) < 1 or any(size % patch for size, patch in zip(pixels.shape[-2:], patch_shape)):
        raise ValueError(f"patch_size {patch_shape} must divide the images' {tuple(pixels.shape[-2:])}")

    def family(clean: torch.Tensor) -> Family:
        return PatchStatistics(clean, norm, patch_shape)

    return _attack_family(
        family, classifier, pixels, labels, Ball(norm, eps), seeds, on_step, losses, steps, restarts, num_draws,
        batch_size,
    )  # fmt: skip


@register_attack("low_frequency")
def low_frequency(
    classifier: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    eps: float,
    seeds: Sequence[int],
    on_step: OnStep | None = None,
    resolution: int = 8,
    losses: Sequence[str] = ("ce", "margin"),
    steps: int = 100,
    restarts: int = 3,
    num_draws: int = 20,
    batch_size: int = BATCH_SIZE,
) -> torch.Tensor:
    """EOT-PGD on perturbations of a low resolution, which a denoiser takes for part of the picture.

    Args:
        classifier: What is attacked; see [`eot_pgd`].
        pixels: Images with pixels in [0, 1], shape `(batch, channels, height, width)`.
        labels: True classes, shape `(batch,)`.
        norm: `"Linf"` or `"L2"`.
        eps: Radius of the ball in pixels of [0, 1].
        seeds: One for each image.
        on_step: Called after every gradient step of every group.
        resolution: Rows and columns of the perturbation before it is scaled up; at most those of the images.
        losses: Each one of `"ce"`, `"margin"`, `"dlr"` or `"vote"`.
        steps: Gradient steps of a run.
        restarts: Runs with each loss.
        num_draws: Noise draws over which gradients and losses are averaged.
        batch_size: How many images, draws counted, pass to the classifier at once.

    Returns:
        Adversarial images in the ball and in [0, 1]. Where a pixel would leave [0, 1] it is cut.

    Raises:
        ValueError: An argument is out of range.
    """
    check_counts(resolution=resolution)
    if resolution > min(pixels.shape[-2:]):
        raise ValueError(f"resolution {resolution} must be at most that of the images, {tuple(pixels.shape[-2:])}")

    def family(clean: torch.Tensor) -> Family:
        return LowFrequency(clean, norm, resolution)

    return _attack_family(
        family, classifier, pixels, labels, Ball(norm, eps), seeds, on_step, losses, steps, restarts, num_draws,
        batch_size,
    )  # fmt: skip


@register_attack("vote")
def vote(
    classifier: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    eps: float,
    seeds: Sequence[int],
    on_step: OnStep | None = None,
    steps: int = 100,
    step_size: float | None = None,
    restarts: int = 3,
    num_draws: int = 20,
    batch_size: int = BATCH_SIZE,
) -> torch.Tensor:
    """EOT-PGD on the vote of `num_draws` draws: the mean of their softmax is inside of the loss.

    The mean loss of single draws spends itself on draws that are wrong already; the loss of the vote does not.
    Arguments, returns and errors are those of [`eot_pgd`].
    """
    return eot_pgd(
        classifier, pixels, labels, eps, steps, step_size, num_draws, True, batch_size, 0, on_step,
        norm=norm, seeds=seeds, losses=("vote",), restarts=restarts,
    )  # fmt: skip


def _attack_family(
    family, classifier, pixels, labels, ball, seeds, on_step, losses, steps, restarts, num_draws, batch_size
) -> torch.Tensor:
    check_images(pixels, labels, seeds)
    check_counts(steps=steps, restarts=restarts)
    num_draws = effective_draws(classifier, num_draws)
    runs = {
        f"family/{loss}/{restart}": _family_run(family, Objective(classifier, loss, num_draws), ball, steps, on_step)
        for restart in range(restarts)
        for loss in check_losses(losses)
    }
    return run_restarts(classifier, pixels, labels, seeds, runs, num_draws, batch_size)


def _family_run(make_family, objective: Objective, ball: Ball, steps: int, on_step: OnStep | None) -> Run:
    def run(clean: torch.Tensor, labels: torch.Tensor, generators: list[torch.Generator]) -> list[torch.Tensor]:
        family = make_family(clean)

        def images(parameters: torch.Tensor) -> torch.Tensor:
            return ball.project(clean, clean + ball.eps * family.perturbation(parameters))

        draws = [torch.rand(family.shape(), device=clean.device, generator=generator) for generator in generators]
        parameters = family.project(2 * torch.stack(draws).to(clean.dtype) - 1)
        best = BestIterates(objective, labels)
        for _ in range(steps):
            current = images(parameters)
            loss, logits, gradient = objective.gradient(current, labels, generators)
            best.update(current, loss, logits)
            # The family is linear, so the gradient of its parameters does not depend on where they are.
            with torch.enable_grad():
                variable = parameters.detach().requires_grad_()
                (slope,) = torch.autograd.grad(family.perturbation(variable), variable, gradient)
            parameters = family.project(parameters + 2.5 / steps * family.steepest(slope))
            if on_step is not None:
                on_step()
        current = images(parameters)
        with torch.no_grad():
            best.update(current, *objective.draws(current, labels, generators))
        return best.candidates

    return run
