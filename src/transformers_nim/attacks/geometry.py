# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The set in which an attack may move: a ball around each image, cut at the borders of the pixel range."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


NORMS = ("Linf", "L2")

# How far beyond eps rounding may carry a perturbation.
TOLERANCE = 1e-6

# Halvings of the interval in which the L2 projection looks for its scale: as many as float32 can tell apart.
_BISECTIONS = 30


def per_image(values: torch.Tensor) -> torch.Tensor:
    """Shape `(batch,)` to `(batch, 1, 1, 1)`, so that it broadcasts with images."""
    return values[:, None, None, None]


def perturbation_norm(delta: torch.Tensor, norm: str) -> torch.Tensor:
    """The norm of each image's perturbation: `(batch, channels, height, width)` to `(batch,)`."""
    return torch.linalg.vector_norm(delta.flatten(1), ord=math.inf if norm == "Linf" else 2, dim=1)


@dataclass(frozen=True)
class Ball:
    """All images with pixels in [0, 1] whose distance from a clean one is at most `eps`.

    Attributes:
        norm: `"Linf"` or `"L2"`, over all channels and pixels of an image.
        eps: The radius in pixels of [0, 1], so that 8/255 is `8 / 255`.

    Raises:
        ValueError: The norm is unknown, or eps is negative or not finite.
    """

    norm: str
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {list(NORMS)}, got {self.norm!r}")
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"eps must be finite and at least 0 (in pixels of [0, 1]), got {self.eps!r}")

    def project(self, clean: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """The nearest points of the set around `clean`; both of shape `(batch, channels, height, width)`."""
        if self.norm == "Linf":
            low, high = (clean - self.eps).clamp(min=0), (clean + self.eps).clamp(max=1)
            return torch.minimum(torch.maximum(images, low), high)
        # The nearest point scales the perturbation first and cuts it at the pixel range then. The smaller the scale,
        # the shorter the result, so bisection finds the one that just fits. (Cutting after a plain rescaling would
        # leave the result strictly inside the ball.)
        delta, low, high = images - clean, -clean, 1 - clean

        def cut(scale: torch.Tensor) -> torch.Tensor:
            return torch.minimum(torch.maximum(per_image(scale) * delta, low), high)

        fits = torch.ones(len(clean), device=clean.device, dtype=clean.dtype)
        inside = perturbation_norm(cut(fits), "L2") <= self.eps
        lower, upper = torch.where(inside, 1.0, 0.0).to(clean), fits
        for _ in range(_BISECTIONS):
            middle = (lower + upper) / 2
            short = perturbation_norm(cut(middle), "L2") <= self.eps
            lower, upper = torch.where(short, middle, lower), torch.where(short, upper, middle)
        return (clean + cut(lower)).clamp(0, 1)

    def steepest(self, gradient: torch.Tensor) -> torch.Tensor:
        """The direction of norm 1 along which a linear function with these gradients rises fastest."""
        if self.norm == "Linf":
            return gradient.sign()
        # A gradient of zero stays zero. Scaled by its largest entry first: squares of small numbers underflow.
        largest = perturbation_norm(gradient, "Linf").clamp(min=torch.finfo(gradient.dtype).tiny)
        gradient = gradient / per_image(largest)
        return gradient / per_image(perturbation_norm(gradient, "L2").clamp(min=1e-12))

    def random_point(self, clean: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """A uniformly random point of the ball around each image, cut at the pixel range."""
        shape, device = clean.shape[1:], clean.device
        if self.norm == "Linf":
            draws = [torch.rand(shape, device=device, generator=generator) for generator in generators]
            delta = self.eps * (2 * torch.stack(draws).to(clean.dtype) - 1)
        else:
            draws = [torch.randn(shape, device=device, generator=generator) for generator in generators]
            radii = [torch.rand((), device=device, generator=generator) for generator in generators]
            radius = self.eps * torch.stack(radii).to(clean.dtype) ** (1 / clean[0].numel())
            delta = per_image(radius) * self.steepest(torch.stack(draws).to(clean.dtype))
        return self.project(clean, clean + delta)

    def check(self, clean: torch.Tensor, images: torch.Tensor) -> None:
        """Checks that images are where an attack may put them, up to rounding of 1e-6.

        Raises:
            ValueError: An image left the ball or the pixel range, or is not finite.
        """
        if images.shape != clean.shape:
            raise ValueError(f"the attack turned images of shape {tuple(clean.shape)} into {tuple(images.shape)}")
        if not len(clean):
            return
        distance = perturbation_norm(images - clean, self.norm).max().item()
        low, high = images.min().item(), images.max().item()
        # Written so that NaN fails it.
        if not (distance <= self.eps + TOLERANCE and low >= 0 and high <= 1):
            raise ValueError(
                f"the attack left its bounds: {self.norm} distance {distance:.6g} with eps {self.eps:.6g}, pixels from"
                f" {low:.6g} to {high:.6g}; adversarial images have to stay in the ball and in [0, 1]"
            )


def check_images(pixels: torch.Tensor, labels: torch.Tensor, seeds: Sequence[int]) -> None:
    """Checks what an attack is given.

    Raises:
        ValueError: Pixels are not a float batch in [0, 1], or labels or seeds are not one for each image.
    """
    if pixels.ndim != 4 or not pixels.is_floating_point():
        raise ValueError(
            f"pixels must be floats of shape (batch, channels, height, width), got {pixels.dtype} of shape"
            f" {tuple(pixels.shape)}"
        )
    if pixels.numel() and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(f"pixels must lie in [0, 1], got {pixels.min():.3f} to {pixels.max():.3f}")
    if len(labels) != len(pixels) or labels.ndim > 2 or (labels.ndim == 1 and labels.is_floating_point()):
        raise ValueError(
            f"labels must be one class or one row of probabilities for each of {len(pixels)} images, got"
            f" {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if len(seeds) != len(pixels):
        raise ValueError(f"got {len(seeds)} seeds for {len(pixels)} images; pass one for each")
