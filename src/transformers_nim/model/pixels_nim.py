# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Convert between pixels in [0, 1] and normalized images, `(pixels - mean) / std` per channel."""

from collections.abc import Sequence

import torch


def per_channel(values: Sequence[float], images: torch.Tensor) -> torch.Tensor:
    """Return one value per channel as a tensor that broadcasts with images.

    Args:
        values: One number per channel.
        images: Images of shape `(..., channels, height, width)`; only dtype and device matter.

    Returns:
        A tensor of shape `(channels, 1, 1)`, float32, or float64 for images in float64.
    """
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    # Filled where it is needed: a copy from the host would wait for an accelerator.
    return torch.cat([torch.full((1, 1, 1), value, dtype=dtype, device=images.device) for value in values])


def normalize(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Normalize pixels in [0, 1], shape `(..., channels, height, width)`, by a mean and an s.d. per channel."""
    return (pixels - per_channel(mean, pixels)) / per_channel(std, pixels)


def to_pixels(pixel_values: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Undo [`normalize`]. Nothing is clamped."""
    return pixel_values * per_channel(std, pixel_values) + per_channel(mean, pixel_values)
