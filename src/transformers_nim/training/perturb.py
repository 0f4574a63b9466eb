# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Adversarial training in a loop of your own, such as transformers' `Trainer`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..attacks.geometry import Ball, per_image
from ..model.noise import FROM_CONFIG, draw_noise, resolve_sigma
from ..model.pixels_nim import normalize, to_pixels
from .attack import TrainingAttack, attacked_mode


def perturb_batch(
    model: nn.Module, batch: Mapping[str, Any], attack: TrainingAttack, update: int = 0
) -> dict[str, Any]:
    """Attack the images of a training batch on the model's own loss (Madry et al., arXiv 1706.06083).

    The noise of the defense is drawn here and returned with the images. So training with the returned batch sees the
    noise that the attack saw, which makes the attack strong. All random numbers come from the global generators. The
    model is attacked in eval mode, without dropout, and is then in its former mode. No gradient of a parameter is
    changed.

    Args:
        model: A [`NIMForRobustImageClassification`] or [`NIMForImageClassification`], or a wrapper of one: PEFT's,
            `torch.compile`'s, DataParallel or DistributedDataParallel.
        batch: Arguments of its forward: `pixel_values`, normalized, `labels`, and others. `sigma` (units of 0..255
            pixels) and `pixel_noise` are kept if they are given. By default sigma is that of
            `config.finetuning_sigma`.
        attack: The attack; its eps is in pixels of [0, 1].
        update: Number of updates so far, for the warm-up of the attack.

    Returns:
        The batch with adversarial `pixel_values`, in their former dtype, and for a model with a defense `sigma` and
        `pixel_noise`.

    Raises:
        ValueError: The batch has no labels, or the config does not hold the normalization of the images.

    Example:

    ```python
    >>> import torch
    >>> from transformers_nim import NIMConfig, NIMForRobustImageClassification
    >>> from transformers_nim.training import TrainingAttack, perturb_batch

    >>> model = NIMForRobustImageClassification(NIMConfig.from_size("tiny-patch8-32", num_labels=10)).train()
    >>> batch = {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.tensor([3, 7])}
    >>> batch = perturb_batch(model, batch, TrainingAttack(eps=8 / 255, steps=2))
    >>> sorted(batch)
    ['labels', 'pixel_noise', 'pixel_values', 'sigma']
    >>> model(**batch).loss.backward()
    ```"""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    config: Any = getattr(model, "config", None)
    mean, std = (getattr(config, name, None) for name in ("image_mean", "image_std"))
    if mean is None or std is None:
        raise ValueError(
            f"the config of {type(model).__name__} does not hold image_mean and image_std, which a perturbation of"
            " pixels needs; perturb_batch is for NIM models"
        )
    if batch.get("labels") is None:
        raise ValueError(f"an attack needs labels; the batch has {sorted(batch)}")
    pixel_values = batch["pixel_values"]
    noise: dict[str, Any] = {}
    options: dict[str, Any] = {"return_dict": True}
    if callable(getattr(model, "classify_noisy", None)):
        noise = _noise(config, **batch)
        # One draw, as in train mode.
        options |= {**noise, "num_samples": 1}
        if not attack.shared_noise:
            options |= _noise(config, pixel_values, sigma=batch.get("sigma", FROM_CONFIG))
        if not attack.through_defense:
            options |= {"sigma": None, "pixel_noise": None}

    def losses_of(pixels: torch.Tensor) -> torch.Tensor:
        images = normalize(pixels, mean, std).to(pixel_values.dtype)
        return model(**{**batch, **options, "pixel_values": images}).loss * len(images)

    pixels = to_pixels(pixel_values.float(), mean, std).clamp(0, 1)
    with attacked_mode(model), torch.enable_grad():
        adversarial = attack(losses_of, pixels, _unit_ball_points(attack.norm, pixels), update)
    return {**batch, **noise, "pixel_values": normalize(adversarial, mean, std).to(pixel_values.dtype)}


def _noise(
    config: Any, pixel_values: torch.Tensor, sigma: Any = FROM_CONFIG, pixel_noise=None, generator=None, **_: Any
) -> dict[str, Any]:
    """Return the sigma and the noise that train mode has, drawn if they are not given."""
    resolved = resolve_sigma(sigma, config.finetuning_sigma, len(pixel_values))
    if resolved is None:
        return {"sigma": None, "pixel_noise": None}
    drawn, noise = draw_noise(pixel_values, resolved, 1, pixel_noise, generator)
    return {"sigma": drawn[:, 0], "pixel_noise": noise[:, 0]}


def _unit_ball_points(norm: str, images: torch.Tensor) -> torch.Tensor:
    """Draw a uniform point of the ball of radius 1 around zero for each image."""
    if norm == "Linf":
        return 2 * torch.rand_like(images) - 1
    radii = torch.rand(len(images), device=images.device) ** (1 / images[0].numel())
    return per_image(radii) * Ball(norm, 1.0).steepest(torch.randn_like(images))
