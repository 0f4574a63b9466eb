# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Attacks made for noisy image modeling: perturbations that a denoiser lets through.

A denoiser removes what looks like noise, and smooth perturbations do not. With `patch_statistics="input"`, brightness
and contrast of each patch even bypass the noise.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..model.checks_nim import check_counts
from .geometry import Ball, per_image, perturbation_norm
from .losses import BestIterates, Objective
from .randomness import Classifier, Generators
from .registry import OnStep, register_attack
from .restarts import GradientAttack


class Family(ABC):
    """Perturbations of a group of clean images, linear in their parameters and of norm at most 1.

    The attack scales them by eps.

    Attributes:
        norm: `"Linf"` or `"L2"`.
        shape: Shape of the parameters of one image.
    """

    norm: str
    shape: tuple[int, ...]

    @abstractmethod
    def perturbation(self, parameters: Tensor) -> Tensor:
        """Return the perturbations of the images that belong to parameters `(batch, *shape)`; linear."""

    @abstractmethod
    def project(self, parameters: Tensor) -> Tensor:
        """Return parameters near the given ones whose perturbations have a norm of at most 1."""

    def steepest(self, slope: Tensor) -> Tensor:
        """Return the direction of parameters along which a function with this slope rises fastest."""
        return Ball(self.norm, 1.0).steepest(slope)


class PatchFamily(Family):
    """Brightness and contrast of patches: `contrast * (x - mean of the patch) + brightness`.

    Both are scaled. For Linf the norm is at most 1 if `|contrast| + |brightness| <= 1` in every patch; for L2 the norm
    is that of all parameters.
    """

    def __init__(self, clean: Tensor, norm: str, patch_shape: tuple[int, int]) -> None:
        height, width = patch_shape
        self.norm = norm
        # (batch, channels, rows, height, columns, width)
        patches = clean.unflatten(3, (-1, width)).unflatten(2, (-1, height))
        contrast = patches - patches.mean(dim=(1, 3, 5), keepdim=True)
        if norm == "Linf":
            size, self.brightness = contrast.abs().amax(dim=(1, 3, 5), keepdim=True), 1.0
        else:
            size = torch.linalg.vector_norm(contrast, dim=(1, 3, 5), keepdim=True)
            self.brightness = (clean.shape[1] * height * width) ** -0.5
        # A patch of one color has no contrast to change; its deviations are rounding.
        self.contrast = contrast / torch.where(size > 1e-6, size, torch.inf)
        self.shape = (2, contrast.shape[2], contrast.shape[4])

    def perturbation(self, parameters: Tensor) -> Tensor:
        contrast, brightness = (part[:, None, :, None, :, None] for part in parameters.unbind(dim=1))
        delta = contrast * self.contrast + brightness * self.brightness
        return delta.flatten(4, 5).flatten(2, 3)

    def project(self, parameters: Tensor) -> Tensor:
        if self.norm == "L2":
            return parameters / per_image(perturbation_norm(parameters, "L2").clamp(min=1))
        # The nearest point with |contrast| + |brightness| <= 1: the same is taken from both, at most what there is.
        size = parameters.abs()
        excess = (size.sum(dim=1, keepdim=True) - 1).clamp(min=0) / 2
        taken = torch.where((size < excess).any(dim=1, keepdim=True), size.amin(dim=1, keepdim=True), excess)
        return parameters.sign() * (size - taken).clamp(min=0, max=1)

    def steepest(self, slope: Tensor) -> Tensor:
        if self.norm == "L2":
            return super().steepest(slope)
        # Brightness and contrast share the norm: move the one with the larger slope alone. A sign for each would move
        # the other at full length too, even where its slope is mere rounding.
        return slope.sign() * (slope.abs() >= slope.abs().amax(dim=1, keepdim=True))


class LowFrequencyFamily(Family):
    """Perturbations of a low resolution, scaled up by bilinear interpolation."""

    def __init__(self, clean: Tensor, norm: str, resolution: int) -> None:
        self.norm, self.size = norm, clean.shape[-2:]
        self.shape = (clean.shape[1], resolution, resolution)

    def perturbation(self, parameters: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(parameters, size=self.size, mode="bilinear", align_corners=False)

    def project(self, parameters: Tensor) -> Tensor:
        if self.norm == "Linf":
            # Interpolated values are averages, no larger than the largest parameter.
            return parameters.clamp(-1, 1)
        norm = perturbation_norm(self.perturbation(parameters), "L2")
        return parameters / per_image(norm.clamp(min=1))


@dataclass(frozen=True, kw_only=True)
class FamilyAttack(GradientAttack):
    """EOT-PGD on the parameters of a family of perturbations, with steps of `2.5 / steps`.

    Options are those of [`GradientAttack`]. Where a pixel would leave [0, 1] it is cut.
    """

    _run_name: ClassVar[str] = "family/{}/{}"

    @abstractmethod
    def _family(self, clean: Tensor, norm: str, classifier: Classifier) -> Family:
        """Return the perturbations of a group of clean images."""

    def _run(
        self, objective: Objective, ball: Ball, on_step: OnStep, clean: Tensor, labels: Tensor, generators: Generators
    ) -> list[Tensor]:
        family = self._family(clean, ball.norm, objective.classifier)

        def images(parameters: Tensor) -> Tensor:
            return ball.project(clean, clean + ball.eps * family.perturbation(parameters))

        draws = [torch.rand(family.shape, device=clean.device, generator=generator) for generator in generators]
        parameters = family.project(2 * torch.stack(draws).to(clean.dtype) - 1)
        best = BestIterates(objective, labels)
        for _ in range(self.steps):
            current = images(parameters)
            loss, logits, gradient = objective.gradient(current, labels, generators)
            best.update(current, loss, logits)
            # The family is linear, so the gradient of the parameters is the same everywhere.
            with torch.enable_grad():
                variable = parameters.detach().requires_grad_()
                (slope,) = torch.autograd.grad(family.perturbation(variable), variable, gradient)
            parameters = family.project(parameters + 2.5 / self.steps * family.steepest(slope))
            on_step()
        current = images(parameters)
        with torch.no_grad():
            best.update(current, *objective.draws(current, labels, generators))
        return best.candidates


@register_attack("patch_statistics")
@dataclass(frozen=True, kw_only=True)
class PatchStatistics(FamilyAttack):
    """EOT-PGD that changes only brightness and contrast of each patch: `a * (x - mean) + mean + b`.

    Made against `patch_statistics="input"`, where mean and standard deviation of each patch bypass the noise. Further
    options are those of [`GradientAttack`].

    Attributes:
        patch_size: Height and width of the patches in pixels, which must divide those of the images; the patches of
            the attacked model by default.
    """

    patch_size: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.patch_size
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        check_counts(**{"height of patch_size": height, "width of patch_size": width})

    def _family(self, clean: Tensor, norm: str, classifier: Classifier) -> Family:
        shape = self.patch_size if self.patch_size is not None else getattr(classifier, "patch_shape", None)
        if shape is None:
            raise ValueError("the classifier does not tell the size of its patches; pass patch_size")
        patch_shape = (shape, shape) if isinstance(shape, int) else (shape[0], shape[1])
        if any(size % patch for size, patch in zip(clean.shape[-2:], patch_shape)):
            raise ValueError(f"patch_size {patch_shape} must divide the images' {tuple(clean.shape[-2:])}")
        return PatchFamily(clean, norm, patch_shape)


@register_attack("low_frequency")
@dataclass(frozen=True, kw_only=True)
class LowFrequency(FamilyAttack):
    """EOT-PGD on perturbations of a low resolution, which a denoiser takes for part of the picture.

    Further options are those of [`GradientAttack`].

    Attributes:
        resolution: Rows and columns of the perturbation before it is scaled up; at most those of the images.
    """

    resolution: int = 8

    def _family(self, clean: Tensor, norm: str, classifier: Classifier) -> Family:
        if self.resolution > min(clean.shape[-2:]):
            raise ValueError(
                f"resolution {self.resolution} must be at most that of the images, {tuple(clean.shape[-2:])}"
            )
        return LowFrequencyFamily(clean, norm, self.resolution)
