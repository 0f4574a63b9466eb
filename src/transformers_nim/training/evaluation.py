# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Measure how well a model denoises and classifies while it trains, at given sigmas.

The seed of an image's noise depends on the image alone. So the figures of two steps differ by the model alone, and do
not depend on the batch size or the number of processes.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..model.modeling_nim import NIMForPreTraining, NIMForRobustImageClassification
from ..model.noise import add_noise, draw_noise, parse_sigma
from ..model.pixels_nim import per_channel
from ..utils.interruption import raise_if_signaled
from ..utils.seeding import derive_seed_32, image_generators
from ..utils.statistics import mean_accuracy
from ..utils.text_table import percent, plural, sigma_label
from .mae import MaskedAutoencoder, draw_mask_scores


def figure_name(figure: str, sigma: float | None) -> str:
    """Return the name of a figure at a sigma: `accuracy_off`, `psnr_sigma_25`, `psnr_sigma_2.5`."""
    return f"{figure}_{sigma_label(sigma).replace(' ', '_')}"


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode in a `with` block, and back into its former mode after it."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def gather_weights(model: nn.Module) -> None:
    """Make weights whole before a part of a model is called; FSDP2 does so only when the whole model is called."""
    getattr(model, "unshard", lambda: None)()


def psnr(images: torch.Tensor, targets: torch.Tensor, image_std: Sequence[float]) -> torch.Tensor:
    """Return the peak signal-to-noise ratio of each image, in dB, at most 100.

    Args:
        images: Normalized images of shape `(batch, channels, height, width)`.
        targets: What they should be, in the same shape.
        image_std: Per-channel standard deviation by which the pixels were divided.

    Returns:
        Ratios of shape `(batch,)`.
    """
    std = per_channel(image_std, targets)
    # Pixels in [0, 1] have a peak of 1. The floor keeps a perfect image finite.
    return -10 * _mean_square(images.float() * std, targets * std).clamp(min=1e-10).log10()


@torch.no_grad()
def evaluate_denoiser(
    accelerator: Any, model: NIMForPreTraining, loader: Iterable[Mapping[str, Any]], sigmas: Sequence[float]
) -> dict[str, float]:
    """Return loss and peak signal-to-noise ratio of a denoiser.

    Args:
        accelerator: Accelerator whose processes share the images.
        model: Model, prepared or not; left in its mode.
        loader: Prepared loader from [`evaluation_loader`].
        sigmas: Noise scales in units of 0..255 pixels.

    Returns:
        `loss` under sigma of the pretraining distribution, and for each sigma `psnr_sigma_…` of the denoised and
        `psnr_noisy_sigma_…` of the noisy images, clamped to valid pixels: means over images, in dB.

    Raises:
        ValueError: No image can be decoded.
    """
    inner: NIMForPreTraining = accelerator.unwrap_model(model)

    def measure(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        pixels = batch["pixel_values"]
        outputs = model(pixels, generator=_generators(batch), return_loss=False)
        # The model's own loss is the batch's; undecodable images must be left out.
        figures = {"loss": _mean_square(outputs.logits.float(), inner.patch_targets(pixels))}
        for sigma in sigmas:
            outputs = model(pixels, sigma=sigma, generator=_generators(batch), return_loss=False)
            for figure, images in (
                ("psnr", outputs.denoised_pixel_values),
                ("psnr_noisy", outputs.noisy_pixel_values),
            ):
                clamped = inner.clamp_pixels(images.float())
                figures[figure_name(figure, sigma)] = psnr(clamped, pixels, inner.config.image_std)
        return figures

    return _means(_measure_images(accelerator, model, loader, measure))


@torch.no_grad()
def evaluate_masked(
    accelerator: Any, model: MaskedAutoencoder, loader: Iterable[Mapping[str, Any]]
) -> dict[str, float]:
    """Return the loss of a masked autoencoder; the mask of an image depends on the image alone.

    Args:
        accelerator, model, loader: As for [`evaluate_denoiser`].

    Returns:
        `loss`, the mean over images.

    Raises:
        ValueError: No image can be decoded.
    """
    inner: MaskedAutoencoder = accelerator.unwrap_model(model)

    def measure(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        # On the CPU, so that masks are the same on every device.
        scores = draw_mask_scores(inner.config, _generators(batch, "cpu"))
        outputs = model(batch["pixel_values"], mask_scores=scores)
        targets = inner.model.patch_targets(batch["pixel_values"])
        errors = (outputs.logits.float() - targets).square().mean(dim=-1)
        # The model's own loss is the batch's; undecodable images must be left out.
        return {"loss": (errors * outputs.mask).sum(dim=1) / outputs.mask.sum(dim=1)}

    return _means(_measure_images(accelerator, model, loader, measure))


@torch.no_grad()
def evaluate_classifier(
    accelerator: Any, model: nn.Module, loader: Iterable[Mapping[str, Any]], sigmas: Sequence[float | None]
) -> dict[str, float]:
    """Return the clean accuracy of a classifier at given sigmas, with one noise draw per image.

    A [`NIMForRobustImageClassification`] denoises; a classifier without a defense sees the noisy image.

    Args:
        accelerator, model, loader: As for [`evaluate_denoiser`].
        sigmas: Noise scales in units of 0..255 pixels; None for the defense off.

    Returns:
        `accuracy_off`, `accuracy_sigma_25` and so on, in [0, 1], each with `…_low` and `…_high` (95 % interval), and
        `loss_off` and so on: mean cross entropies.

    Raises:
        ValueError: No image can be decoded.
    """
    inner = accelerator.unwrap_model(model)

    def measure(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        pixels, labels = batch["pixel_values"], batch["labels"]
        figures = {}
        for sigma in sigmas:
            generators = _generators(batch)
            if isinstance(inner, NIMForRobustImageClassification):
                outputs = model(pixels, sigma=sigma, num_samples=1, generator=generators)
            elif sigma is None:
                outputs = model(pixels)
            else:
                drawn, noise = draw_noise(pixels, parse_sigma(sigma), generator=generators)
                outputs = model(add_noise(pixels, drawn[:, 0], noise[:, 0], inner.config.image_std))
            logits = outputs.logits.float()
            figures[figure_name("loss", sigma)] = nn.functional.cross_entropy(logits, labels, reduction="none")
            figures[figure_name("accuracy", sigma)] = logits.argmax(dim=-1) == labels
        return figures

    measured = _measure_images(accelerator, model, loader, measure)
    results = _means({name: values for name, values in measured.items() if name.startswith("loss")})
    for sigma in sigmas:
        name = figure_name("accuracy", sigma)
        accuracy = mean_accuracy(measured[name].bool().numpy()[:, None])
        results |= {name: accuracy.mean, f"{name}_low": accuracy.low, f"{name}_high": accuracy.high}
    return results


def judge_denoiser(figures: Mapping[str, float], sigmas: Sequence[float]) -> str | None:
    """Say in a sentence whether a denoiser is better than none.

    Args:
        figures: What [`evaluate_denoiser`] returns.
        sigmas: Noise scales of the figures, in units of 0..255 pixels.

    Returns:
        None if there is no noise that could be removed.
    """
    names = ("psnr", "psnr_noisy")
    pairs = {sigma: [figures[figure_name(name, sigma)] for name in names] for sigma in sigmas if sigma > 0}
    if not pairs:
        return None
    worse = [sigma for sigma, (denoised, noisy) in pairs.items() if denoised <= noisy]
    shown = ", ".join(f"{one:.1f} instead of {noisy:.1f} dB at sigma {s:g}" for s, (one, noisy) in pairs.items())
    if not worse:
        return f"On these pictures the denoiser is better than none: {shown}."
    where = "" if len(worse) == len(pairs) else f" at sigma {', '.join(f'{sigma:g}' for sigma in worse)}"
    return f"On these pictures the denoiser is no better than none{where}: {shown}."


def judge_defense(figures: Mapping[str, float], sigma: float) -> str:
    """Say in a sentence what the defense costs without an attack.

    Args:
        figures: What [`evaluate_classifier`] returns for this sigma and the defense off.
        sigma: Noise scale of the defense, in units of 0..255 pixels.
    """
    bounds = {
        one: [figures[figure_name("accuracy", one) + end] for end in ("", "_low", "_high")] for one in (None, sigma)
    }
    (off, *_), (on, *_) = bounds.values()
    shown = f"{percent(*bounds[None])} % with the defense off, {percent(*bounds[sigma])} % at sigma {sigma:g}"
    # Of the same images, so that the true interval is narrower.
    margin = math.hypot(*(high - low for _, low, high in bounds.values())) / 2
    if abs(off - on) <= margin:
        what = f"{plural(round(figures['num_images']), 'image')} cannot tell that the defense costs or gains accuracy"
    else:
        what = f"the defense {'costs' if off > on else 'gains'} {100 * abs(off - on):.0f} points"
    return f"Without an attack {what}: {shown}."


def _generators(batch: Mapping[str, Any], device: str | None = None) -> list[torch.Generator]:
    seeds = [derive_seed_32("evaluation", int(row)) for row in batch["row"]]
    return image_generators(seeds, device=device or batch["pixel_values"].device)


def _mean_square(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (images - targets).square().flatten(1).mean(dim=1)


def _measure_images(
    accelerator: Any,
    model: nn.Module,
    loader: Iterable[Mapping[str, Any]],
    measure: Callable[[Mapping[str, Any]], dict[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """Return figures by name, one number per image that can be decoded, from all processes; float64 on the CPU."""
    found: dict[str, list[torch.Tensor]] = {}
    with eval_mode(model):
        for batch in loader:
            raise_if_signaled(accelerator)
            figures = measure(batch)
            numbers = (figure.float() for figure in figures.values())
            is_valid, *gathered = accelerator.gather_for_metrics((batch["is_valid"], *numbers))
            for name, values in zip(figures, gathered):
                found.setdefault(name, []).append(values[is_valid].double().cpu())
    return {name: torch.cat(values) for name, values in found.items()}


def _means(measured: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return the means of figures, and with `num_images` how many images they are of."""
    num_images = min(map(len, measured.values()))
    if num_images == 0:
        raise ValueError("none of the validation images can be decoded")
    return {name: values.mean().item() for name, values in measured.items()} | {"num_images": num_images}
