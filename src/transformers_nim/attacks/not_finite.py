# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Go on where a loss or a gradient is not finite, and remember on which images that was.

One such number need not stop an attack, nor may it pass unnoticed: the attack is weaker there than it seems.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


# Stand for infinity where numbers are compared, averaged and multiplied in float32.
_LARGEST_LOSS, _LARGEST_SLOPE = 1e30, 1e15


@dataclass
class Found:
    """The images of an attack on which a loss or a gradient was not finite.

    Attributes:
        group: Positions in the attacked batch of the images that pass through the network now.
        images: Positions of the images found so far.
    """

    group: Tensor
    images: set[int] = field(default_factory=set)


_FOUND: ContextVar[Found | None] = ContextVar("found", default=None)


@contextmanager
def looking_for_not_finite(num_images: int) -> Iterator[Found]:
    """Look for images with numbers that are not finite in a `with` block, among those of an attacked batch."""
    found = Found(torch.arange(num_images))
    token = _FOUND.set(found)
    try:
        yield found
    finally:
        _FOUND.reset(token)


def set_group(positions: Tensor) -> None:
    """Tell which images of the batch pass through the network from now on; one may be there several times."""
    found = _FOUND.get()
    if found is not None:
        found.group = positions.cpu()


def note_images(positions: list[int]) -> None:
    """Remember images of the attacked batch by their positions."""
    found = _FOUND.get()
    if found is not None:
        found.images.update(positions)


def note(is_finite: Tensor, found: Found | None = None) -> None:
    """Remember those images of the group whose numbers are not finite.

    Args:
        is_finite: Whether they are, shape `(group, ...)`.
        found: Where to; the attack that runs in this thread by default.
    """
    found = _FOUND.get() if found is None else found
    if found is None or bool(is_finite.all()):
        return
    is_bad = ~is_finite.flatten(1).all(dim=1).cpu()
    # Attacks of other libraries take parts of the batch in an order of their own.
    known = len(is_bad) == len(found.group)
    found.images.update((found.group[is_bad] if known else found.group).tolist())


def finite_loss(loss: Tensor) -> Tensor:
    """Return losses that are finite: very large for NaN, as such an answer is not right, and for infinity."""
    return torch.nan_to_num(loss, nan=_LARGEST_LOSS, posinf=_LARGEST_LOSS, neginf=-_LARGEST_LOSS)


def finite_gradient(gradient: Tensor) -> Tensor:
    """Return a gradient whose entries are finite: 0 for NaN, and a large number of the same sign for infinity."""
    return torch.nan_to_num(gradient, nan=0.0, posinf=_LARGEST_SLOPE, neginf=-_LARGEST_SLOPE)


class FiniteGradient(torch.autograd.Function):
    """Returns images unchanged; their gradient is made finite, and images where it was not are remembered."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor) -> Tensor:
        # On an accelerator the backward pass runs in another thread.
        ctx.found = _FOUND.get()
        return pixels.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        note(gradient.isfinite(), ctx.found)
        return finite_gradient(gradient)
