# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What is measured while a model trains: how well it denoises and classifies, at given sigmas.

Each image's noise has a seed of its own, so figures of different steps differ by the model alone, and do not depend on
batch size or number of processes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..model.modeling_nim import NIMForPreTraining, NIMForRobustImageClassification
from ..model.noise import add_noise, draw_noise, parse_sigma
from ..utils.seeding import derive_seed_32, image_generators
from ..utils.statistics import mean_accuracy
from .mae import MaskedAutoencoder


def _generators(rows: torch.Tensor, device: torch.device) -> list[torch.Generator]:
    return image_generators([derive_seed_32("evaluation", int(row)) for row in rows], device=device)


def _mask_scores(rows: torch.Tensor, num_patches: int, device: torch.device) -> torch.Tensor:
    """Random numbers for the masks of images, as MAE takes them."""
    generators = _generators(rows, torch.device("cpu"))
    return torch.stack([torch.rand(num_patches, generator=generator) for generator in generators]).to(device)


def _mean_square(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (images - targets).square().flatten(1).mean(dim=1)


def sigma_name(sigma: float | None) -> str:
    """How a sigma is written in the names of figures: `off`, `sigma_25`, `sigma_2.5`."""
    return "off" if sigma is None else f"sigma_{sigma:g}"


@torch.no_grad()
def evaluate_denoiser(
    accelerator: Any, model: NIMForPreTraining, loader: Iterable[Mapping[str, Any]], sigmas: Sequence[float]
) -> dict[str, float]:
    """Loss and peak signal-to-noise ratio of a denoiser.

    Args:
        accelerator: Whose processes share the images.
        model: The model, prepared or not; left in the mode that it was in.
        loader: A prepared loader from `evaluation_loader`.
        sigmas: Noise scales in units of 0..255 pixels.

    Returns:
        `loss` at the pretraining distribution of sigma, and for each sigma `psnr_sigma_…` of the denoised and
        `psnr_noisy_sigma_…` of the noisy images, clamped to valid pixels: means over images, in dB.
    """
    config = accelerator.unwrap_model(model).config
    std = torch.tensor(config.image_std, device=accelerator.device)[:, None, None]
    clamp = accelerator.unwrap_model(model).clamp_pixels
    sums: dict[str, list[torch.Tensor]] = {}
    with _eval_mode(model):
        for batch in loader:
            pixels, rows, is_valid = batch["pixel_values"], batch["row"], batch["is_valid"]
            # Per image, so that undecodable ones can be left out.
            drawn = model(pixels, generator=_generators(rows, pixels.device), return_loss=False)
            figures = {"loss": _patch_loss(accelerator.unwrap_model(model), drawn.logits, pixels)}
            for sigma in sigmas:
                outputs = model(pixels, sigma=sigma, generator=_generators(rows, pixels.device), return_loss=False)
                for name, images in (("", outputs.denoised_pixel_values), ("noisy_", outputs.noisy_pixel_values)):
                    # Pixels in [0, 1] have a peak of 1. The floor keeps a perfect picture finite (100 dB).
                    square = _mean_square(clamp(images.float()) * std, pixels * std).clamp(min=1e-10)
                    figures[f"psnr_{name}{sigma_name(sigma)}"] = -10 * square.log10()
            _gather(accelerator, figures, is_valid, sums)
    return _means(sums)


def _patch_loss(model: NIMForPreTraining, logits: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """The pretraining loss of each image."""
    return _mean_square(logits.float(), model.patch_targets(pixels))


@torch.no_grad()
def evaluate_masked(
    accelerator: Any, model: MaskedAutoencoder, loader: Iterable[Mapping[str, Any]]
) -> dict[str, float]:
    """Loss of a masked autoencoder, each image with a mask of its own.

    Args:
        accelerator: Whose processes share the images.
        model: The model, prepared or not; left in the mode that it was in.
        loader: A prepared loader from `evaluation_loader`.

    Returns:
        `loss`.
    """
    inner = accelerator.unwrap_model(model)
    rows_of_patches, columns_of_patches = inner.config.patch_grid
    sums: dict[str, list[torch.Tensor]] = {}
    with _eval_mode(model):
        for batch in loader:
            pixels = batch["pixel_values"]
            scores = _mask_scores(batch["row"], rows_of_patches * columns_of_patches, pixels.device)
            # Every image has as many masked patches, so the batch's mean is that of its images; one by one, because
            # undecodable ones count for nothing.
            outputs = model(pixels, mask_scores=scores)
            targets = inner.model.patch_targets(pixels)
            masked = (outputs.logits.float() - targets).square().mean(dim=-1)
            losses = (masked * outputs.mask).sum(dim=1) / outputs.mask.sum(dim=1)
            _gather(accelerator, {"loss": losses}, batch["is_valid"], sums)
    return _means(sums)


@torch.no_grad()
def evaluate_classifier(
    accelerator: Any, model: nn.Module, loader: Iterable[Mapping[str, Any]], sigmas: Sequence[float | None]
) -> dict[str, float]:
    """Clean accuracy of a classifier with its defense off and at given sigmas, one noise draw per image.

    A [`NIMForRobustImageClassification`] denoises at each sigma; a classifier without a defense sees the noisy image.

    Args:
        accelerator: Whose processes share the images.
        model: The model, prepared or not; left in the mode that it was in.
        loader: A prepared loader from `evaluation_loader`.
        sigmas: Noise scales in units of 0..255 pixels; None for the defense off.

    Returns:
        `accuracy_off`, `accuracy_sigma_25` and so on, in [0, 1], each with `…_low` and `…_high` (95 % interval), and
        `loss_off` and so on: mean cross entropies.
    """
    inner = accelerator.unwrap_model(model)
    is_robust = isinstance(inner, NIMForRobustImageClassification)
    sums: dict[str, list[torch.Tensor]] = {}
    with _eval_mode(model):
        for batch in loader:
            pixels, labels, is_valid = batch["pixel_values"], batch["labels"], batch["is_valid"]
            figures = {}
            for sigma in sigmas:
                generators = _generators(batch["row"], pixels.device)
                if is_robust:
                    outputs = model(pixels, sigma=sigma, num_samples=1, generator=generators)
                else:
                    outputs = model(pixels if sigma is None else _noisy(pixels, sigma, generators, inner.config))
                logits = outputs.logits.float()
                figures[f"loss_{sigma_name(sigma)}"] = nn.functional.cross_entropy(logits, labels, reduction="none")
                figures[f"accuracy_{sigma_name(sigma)}"] = logits.argmax(dim=-1) == labels
            _gather(accelerator, figures, is_valid, sums)
    results = _means(sums)
    for name in [name for name in results if name.startswith("accuracy_")]:
        accuracy = mean_accuracy(torch.cat(sums[name]).bool().numpy()[:, None])
        results |= {name: accuracy.mean, f"{name}_low": accuracy.low, f"{name}_high": accuracy.high}
    return results


def _noisy(pixels: torch.Tensor, sigma: float, generators: list[torch.Generator], config: Any) -> torch.Tensor:
    drawn, noise = draw_noise(pixels, parse_sigma(sigma), generator=generators)
    return add_noise(pixels, drawn[:, 0], noise[:, 0], config.image_std)


class _eval_mode:
    """Eval mode inside a `with` block."""

    def __init__(self, model: nn.Module):
        self.model, self.was_training = model, model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *error: object) -> None:
        self.model.train(self.was_training)


def _gather(accelerator: Any, figures: dict[str, torch.Tensor], is_valid: torch.Tensor, sums: dict) -> None:
    names = list(figures)
    gathered = accelerator.gather_for_metrics((is_valid, *(figures[name].float() for name in names)))
    for name, values in zip(names, gathered[1:]):
        sums.setdefault(name, []).append(values[gathered[0]].double().cpu())


def _means(sums: dict[str, list[torch.Tensor]]) -> dict[str, float]:
    means = {name: torch.cat(values) for name, values in sums.items()}
    if any(len(values) == 0 for values in means.values()):
        raise ValueError("none of the validation images can be decoded")
    # How many could be decoded: what the figures are of.
    num_images = len(next(iter(means.values())))
    return {name: values.mean().item() for name, values in means.items()} | {"num_images": num_images}
