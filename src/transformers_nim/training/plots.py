# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Plot images as a denoiser or a masked autoencoder reconstructs them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..model.modeling_nim import NIMForPreTraining
from ..model.pixels_nim import to_pixels
from ..utils.extras import require
from ..utils.seeding import image_generators
from .evaluation import eval_mode, psnr
from .mae import MaskedAutoencoder, draw_mask_scores


@torch.no_grad()
def plot_reconstructions(
    accelerator: Any,
    model: NIMForPreTraining | MaskedAutoencoder,
    pixel_values: torch.Tensor,
    sigmas: Sequence[float],
    path: str | Path,
    title: str = "",
) -> None:
    """Plot images: clean, and at each sigma noisy and denoised (or masked and filled in).

    Called by all processes, which may share the weights; the main process writes the file.

    Args:
        accelerator: Accelerator of the processes.
        model: Model, not wrapped.
        pixel_values: Normalized images, one column each, shape `(batch, channels, height, width)`.
        sigmas: Noise scales in units of 0..255 pixels, two rows each; unused for a masked autoencoder.
        path: PNG file to write.
        title: Line above the plot.
    """
    config, num_images = model.config, len(pixel_values)
    rows = {"clean": pixel_values}
    with eval_mode(model):
        if isinstance(model, MaskedAutoencoder):
            scores = draw_mask_scores(config, image_generators(range(num_images)))
            outputs = model(pixel_values, mask_scores=scores)
            rows |= {"masked": outputs.masked_pixel_values, "filled in": outputs.reconstructed_pixel_values}
        else:
            for sigma in sigmas:
                generators = image_generators(range(num_images), device=pixel_values.device)
                outputs = model(pixel_values, sigma=sigma, generator=generators, return_loss=False)
                denoised = model.clamp_pixels(outputs.denoised_pixel_values)
                ratio = psnr(denoised, pixel_values, config.image_std).mean().item()
                rows[f"noisy\nsigma {sigma:g}"] = outputs.noisy_pixel_values
                rows[f"denoised\nPSNR {ratio:.1f} dB"] = denoised
    if accelerator.is_main_process:
        mean, std = config.image_mean, config.image_std
        pixels = {name: to_pixels(images.float(), mean, std).clamp(0, 1).cpu() for name, images in rows.items()}
        _save_grid(pixels, Path(path), title)


def _save_grid(rows: dict[str, torch.Tensor], path: Path, title: str) -> None:
    """Save rows of images with pixels in [0, 1], by name."""
    plt = require("matplotlib.pyplot")
    num_images, _, height, width = next(iter(rows.values())).shape
    # At 100 dots per inch an image needs at least one dot per pixel: averages of pixels would hide noise.
    inches = max(1.0, 1.1 * max(height, width) / 100) / max(height, width)
    figure, axes = plt.subplots(
        len(rows),
        num_images,
        figsize=(num_images * inches * width + 0.6, len(rows) * inches * height + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for line, (name, images) in zip(axes, rows.items()):
        line[0].set_ylabel(name, fontsize="small")
        for axis, image in zip(line, images.permute(0, 2, 3, 1).numpy()):
            # A single channel is drawn in grey.
            image = image.squeeze(-1) if image.shape[-1] == 1 else image
            axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    figure.suptitle(title, fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
