# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The ball around each image in which an attack may move, cut at the pixel range."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import logging


logger = logging.get_logger(__name__)

NORMS = ("Linf", "L2")

# The radii that RobustBench attacks with, in units of 0..255 pixels.
DEFAULT_EPS = {"Linf": 8.0, "L2": 128.0}
# Radii in these units that nobody means: less than pictures of 8 bits can hold, and more than any that is published.
_LEAST_EPS, _LARGEST_EPS = {"Linf": 0.5, "L2": 8.0}, {"Linf": 255.0, "L2": 60 * 255.0}

# By how much a norm may exceed eps through rounding, and pixels of float32 may leave [0, 1].
TOLERANCE = 1e-6

# Bisections of the scale in the L2 projection: as many as float32 can tell apart.
_BISECTIONS = 30


def per_image(values: Tensor) -> Tensor:
    """Reshape `(batch,)` to `(batch, 1, 1, 1)`, which broadcasts with images."""
    return values[:, None, None, None]


def perturbation_norm(delta: Tensor, norm: str) -> Tensor:
    """Return the norm of each perturbation of `(batch, channels, height, width)`, shape `(batch,)`."""
    if norm == "Linf":
        return torch.linalg.vector_norm(delta.flatten(1), ord=math.inf, dim=1)
    # Over many pixels of a flat picture, a sum of squares in float32 is wrong in the fourth digit.
    exact = None if delta.device.type == "mps" else torch.float64
    return torch.linalg.vector_norm(delta.flatten(1), dim=1, dtype=exact).to(delta.dtype)


def warn_of_eps(norm: str, eps: float) -> None:
    """Warn of a radius that looks as if it was given in another unit.

    Args:
        norm: `"Linf"` or `"L2"`.
        eps: The radius in units of 0..255 pixels.
    """
    if 0 < eps < _LEAST_EPS[norm]:
        logger.warning_once(
            f"{norm} eps {eps:g}/255 is less than pictures of 8 bits can hold; if {eps:g} was meant for pixels in"
            f" [0, 1], that is {255 * eps:.3g}/255 (on the command line eps is in units of 0..255)"
        )
    elif eps > _LARGEST_EPS[norm]:
        logger.warning_once(
            f"{norm} eps {eps / 255:g} for pixels in [0, 1] is larger than any attack allows; was {eps / 255:g}/255"
            " meant?"
        )


@dataclass(frozen=True)
class Ball:
    """The images in [0, 1] whose distance from a clean image is at most `eps`.

    Attributes:
        norm: `"Linf"` or `"L2"`, over all channels and pixels of an image.
        eps: The radius in pixels of [0, 1], such as `8 / 255`; for Linf at most 1.

    Raises:
        ValueError: The norm is unknown, or eps is negative, not finite or (Linf) greater than 1.
    """

    norm: str
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {list(NORMS)}, got {self.norm!r}")
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"eps must be finite and at least 0 (in pixels of [0, 1]), got {self.eps!r}")
        if self.norm == "Linf" and self.eps > 1:
            raise ValueError(
                f"eps must be at most 1 for Linf (in pixels of [0, 1]), got {self.eps:g}; was {self.eps:g}/255 meant?"
            )

    def project(self, clean: Tensor, images: Tensor) -> Tensor:
        """Return the nearest points in the balls around `clean`; all of shape `(batch, channels, height, width)`."""
        if self.norm == "Linf":
            low, high = (clean - self.eps).clamp(min=0), (clean + self.eps).clamp(max=1)
            return torch.minimum(torch.maximum(images, low), high)
        # The nearest point is the perturbation, scaled and then cut at the pixel range. Its norm grows with the scale,
        # so bisection finds the largest scale that fits. (To scale to eps and cut would end strictly inside the ball.)
        delta, low, high = images - clean, -clean, 1 - clean

        def cut(scale: Tensor) -> Tensor:
            return torch.minimum(torch.maximum(per_image(scale) * delta, low), high)

        fits = torch.ones(len(clean), device=clean.device, dtype=clean.dtype)
        inside = perturbation_norm(cut(fits), "L2") <= self.eps
        lower, upper = torch.where(inside, 1.0, 0.0).to(clean), fits
        for _ in range(_BISECTIONS):
            middle = (lower + upper) / 2
            short = perturbation_norm(cut(middle), "L2") <= self.eps
            lower, upper = torch.where(short, middle, lower), torch.where(short, upper, middle)
        return (clean + cut(lower)).clamp(0, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the direction of norm 1 along which a linear function with this gradient rises fastest."""
        if self.norm == "Linf":
            return gradient.sign()
        # A zero gradient stays zero. The largest entry is scaled to 1 first, as squares of small numbers underflow.
        largest = perturbation_norm(gradient, "Linf").clamp(min=torch.finfo(gradient.dtype).tiny)
        gradient = gradient / per_image(largest)
        return gradient / per_image(perturbation_norm(gradient, "L2").clamp(min=1e-12))

    def random_point(self, clean: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw a uniform point of the ball around each image and cut it at the pixel range.

        Args:
            clean: Images in [0, 1], shape `(batch, channels, height, width)`.
            generators: One random generator per image.
        """
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

    def check(self, clean: Tensor, images: Tensor) -> None:
        """Check that adversarial images lie in the ball and in [0, 1], up to rounding.

        Raises:
            ValueError: An image left the ball or the pixel range, or is not finite.
        """
        if images.shape != clean.shape:
            raise ValueError(f"the attack turned images of shape {tuple(clean.shape)} into {tuple(images.shape)}")
        if not len(clean):
            return
        distance = perturbation_norm(images - clean, self.norm).max().item()
        low, high = images.min().item(), images.max().item()
        rounding = 0.0
        if self.norm == "L2":
            # Each pixel is rounded, in a flat picture all in one direction, and the norm by a share of eps.
            rounding = torch.finfo(clean.dtype).eps / 2 * (1 + self.eps) * clean[0].numel() ** 0.5
        # NaN fails this too.
        if not (distance <= self.eps + TOLERANCE + rounding and low >= 0 and high <= 1):
            raise ValueError(
                f"the attack left its bounds: {self.norm} distance {distance:.6g} with eps {self.eps:.6g}, pixels from"
                f" {low:.6g} to {high:.6g}; adversarial images have to stay in the ball and in [0, 1]"
            )


def class_numbers(labels: Tensor, num_images: int, num_classes: int | None = None) -> Tensor:
    """Return class numbers as attacks and figures want them.

    Args:
        labels: One integer per image, shape `(images,)` or `(images, 1)`.
        num_images: Number of images.
        num_classes: Number of classes, if it is known.

    Returns:
        The same in int64, shape `(images,)`.

    Raises:
        ValueError: They are something else, negative, or none of the classes.
    """
    is_whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not is_whole or labels.shape not in ((num_images,), (num_images, 1)):
        raise ValueError(
            f"labels must be class numbers, integers of shape ({num_images},), got {labels.dtype} of shape"
            f" {tuple(labels.shape)}"
        )
    labels = labels.reshape(num_images).to(torch.long)
    for wrong in labels[(labels < 0) | (labels >= (math.inf if num_classes is None else num_classes))][:1].tolist():
        last = "" if num_classes is None else f" to {num_classes - 1}"
        raise ValueError(f"labels must be class numbers from 0{last}, got {wrong}")
    return labels


def check_images(pixels: Tensor, labels: Tensor, seeds: Sequence[int], num_classes: int | None = None) -> Tensor:
    """Check the images, labels and seeds that an attack is given, and return the labels as it wants them.

    Raises:
        ValueError: Pixels are not a float batch in [0, 1] up to rounding, there is not one label and one seed per
            image, or a label is none of the classes.
    """
    if pixels.ndim != 4 or not pixels.is_floating_point():
        raise ValueError(
            f"pixels must be floats of shape (batch, channels, height, width), got {pixels.dtype} of shape"
            f" {tuple(pixels.shape)}"
        )
    rounding = max(TOLERANCE, 2 * torch.finfo(pixels.dtype).eps)
    if pixels.numel() and not (pixels.min() >= -rounding and pixels.max() <= 1 + rounding):
        raise ValueError(f"pixels must lie in [0, 1], got {pixels.min():.3f} to {pixels.max():.3f}")
    if len(seeds) != len(pixels):
        raise ValueError(f"got {len(seeds)} seeds for {len(pixels)} images; pass one for each")
    if not labels.is_floating_point():
        return class_numbers(labels, len(pixels), num_classes)
    if labels.ndim != 2 or len(labels) != len(pixels) or (num_classes and labels.shape[1] != num_classes):
        raise ValueError(
            f"labels must be one class or one row of probabilities for each of {len(pixels)} images"
            f"{f' and {num_classes} classes' if num_classes else ''}, got {labels.dtype} of shape"
            f" {tuple(labels.shape)}"
        )
    return labels
