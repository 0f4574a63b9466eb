# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Draw what a denoiser or a masked autoencoder makes of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..model.modeling_nim import NIMForPreTraining
from ..utils.extras import require
from ..utils.seeding import image_generators
from .evaluation import _eval_mode, _mask_scores, _mean_square
from .mae import MaskedAutoencoder


@torch.no_grad()
def plot_reconstructions(
    accelerator: Any,
    model: NIMForPreTraining | MaskedAutoencoder,
    pixel_values: torch.Tensor,
    sigmas: Sequence[float],
    path: str | Path,
    title: str = "",
) -> None:
    """Draws a grid of images as they are, noisy and denoised at each sigma (or masked and filled in).

    Called by all processes, which may share the weights; the main one draws.

    Args:
        accelerator: Knows which process is the main one.
        model: The model, not wrapped.
        pixel_values: Normalized images, one column each.
        sigmas: Noise scales in units of 0..255 pixels, two rows each; unused for a masked autoencoder.
        path: The PNG file to write.
        title: A line above the grid.
    """
    config = model.config
    mean, std = (
        torch.tensor(v, device=pixel_values.device)[:, None, None] for v in (config.image_mean, config.image_std)
    )
    seeds = range(len(pixel_values))
    rows = {"clean": pixel_values}
    with _eval_mode(model):
        if isinstance(model, MaskedAutoencoder):
            patches = config.patch_grid[0] * config.patch_grid[1]
            outputs = model(pixel_values, mask_scores=_mask_scores(torch.tensor(seeds), patches, pixel_values.device))
            rows |= {"masked": outputs.masked_pixel_values, "filled in": outputs.reconstructed_pixel_values}
        else:
            for sigma in sigmas:
                generators = image_generators(seeds, device=pixel_values.device)
                outputs = model(pixel_values, sigma=sigma, generator=generators, return_loss=False)
                rows[f"noisy\nsigma {sigma:g}"] = outputs.noisy_pixel_values
                square = _mean_square(model.clamp_pixels(outputs.denoised_pixel_values) * std, pixel_values * std)
                psnr = -10 * square.clamp(min=1e-10).log10().mean().item()
                rows[f"denoised\nPSNR {psnr:.1f} dB"] = outputs.denoised_pixel_values
    if not accelerator.is_main_process:
        return
    plt = require("matplotlib.pyplot")
    height, width = config.image_shape
    # An inch or, with 100 pixels to it, at least as many pixels as the image has: averages of them would hide noise.
    inches = max(1.0, 1.1 * max(height, width) / 100) / max(height, width)
    figure, axes = plt.subplots(
        len(rows),
        len(pixel_values),
        figsize=(len(pixel_values) * inches * width + 0.6, len(rows) * inches * height + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for line, (name, images) in zip(axes, rows.items()):
        line[0].set_ylabel(name, fontsize="small")
        pixels = (images.float() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        for axis, image in zip(line, pixels):
            image = image.squeeze(-1) if image.shape[-1] == 1 else image
            axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    figure.suptitle(title, fontsize="medium")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
