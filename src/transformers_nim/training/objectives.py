# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Compute the loss of one training step: denoise, fill in hidden patches, or classify under attack.

A batch is one of [`training_batches`], to which [`TrainingRun`] adds `step`. Noise and masks come with it, drawn by
the DataLoader's workers, so the loss does not depend on how images are shared out among processes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..data.augmentation import LabelMixer
from ..data.images import Batch
from ..model.noise import add_noise
from ..model.outputs_nim import combine_draws
from ..model.pixels_nim import normalize, to_pixels
from .attack import TrainingAttack, attacked_mode
from .evaluation import gather_weights


def denoising_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the mean loss of restoring images, each under its own sigma and noise (NIM, arXiv 2302.01056).

    Args:
        model: Prepared [`NIMForPreTraining`].
        batch: Training images with `sigma` and `pixel_noise`.
    """
    return model(batch["pixel_values"], sigma=batch["sigma"], pixel_noise=batch["pixel_noise"][:, 0]).loss


def masking_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the mean loss of filling in hidden patches, other ones in each image (MAE, arXiv 2111.06377).

    Args:
        model: Prepared [`MaskedAutoencoder`].
        batch: Training images with `mask_scores`.
    """
    return model(batch["pixel_values"], mask_scores=batch["mask_scores"]).loss


TRAIN_ON = ("denoised", "smoothed", "noisy", "clean")


@dataclass(frozen=True)
class ClassificationObjective:
    """Classify images that are mixed, attacked, made noisy and denoised, in this order.

    Attributes:
        model: Prepared classifier.
        inner_model: The same classifier, not wrapped, which is attacked.
        train_on: `"denoised"` images (De^3; a [`NIMForRobustImageClassification`]), `"smoothed"` ones (the same class
            with `denoise=False`), or for a [`NIMForImageClassification`] `"noisy"` or `"clean"` ones.
        mix_labels: Mixes images and smooths labels.
        attack: Attack on the images, or None.
        draw_loss: Loss of several noise draws: `"vote"`, the cross entropy of the mean probability (SmoothAdv, arXiv
            1906.04584), which the defense votes by, or `"mean"`, the mean of the cross entropies.
        consistency_weight: Weight of the mean over draws of KL(mean probability || probability), which makes draws
            agree (Jeong and Shin 2020, arXiv 2006.04062).
        consistency_entropy: Weight, within it, of the entropy of the mean probability, which makes the vote sure.
        denoising_weight: Weight of the denoiser's own loss on clean and perturbed images.
        precision: Makes a context for the passes of the denoiser alone, such as `Accelerator.autocast`.
    """

    model: nn.Module
    inner_model: Any
    train_on: str
    mix_labels: LabelMixer
    attack: TrainingAttack | None = None
    draw_loss: str = "vote"
    consistency_weight: float = 0.0
    consistency_entropy: float = 0.0
    denoising_weight: float = 0.0
    precision: Callable[[], AbstractContextManager] = nullcontext

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return the mean loss of a batch."""
        clean, labels = self.mix_labels(batch["pixel_values"], batch["labels"])
        pixel_values = clean
        if self.attack is not None:
            pixel_values = self.attacked(self.attack, batch, clean, labels)
        draw_logits = self._draw_logits(self.model, pixel_values, batch.get("sigma"), batch.get("pixel_noise"))
        loss = self.loss(draw_logits, labels)
        if not self.denoising_weight:
            return loss
        return loss + self.denoising_weight * self._denoising_loss(batch, clean, pixel_values)

    def _denoising_loss(self, batch: Batch, clean: torch.Tensor, perturbed: torch.Tensor) -> torch.Tensor:
        """Return the pretraining loss: from clean and perturbed images, under the first draw, to the clean ones."""
        gather_weights(self.inner_model)
        denoiser, sigma = self.inner_model.denoiser, batch["sigma"]
        losses = []
        for images in [clean] if self.attack is None else [clean, perturbed]:
            noisy = add_noise(images, sigma, batch["pixel_noise"][:, 0], denoiser.config.image_std)
            with self.precision():
                _, logits, _ = denoiser.restore(noisy, sigma, images)
            losses.append(nn.functional.mse_loss(logits.to(torch.float32), denoiser.patch_targets(clean)))
        return torch.stack(losses).mean()

    def attacked(
        self, attack: TrainingAttack, batch: Batch, pixel_values: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return adversarial images, normalized.

        The model is attacked in eval mode: dropout would be noise that the defense does not have.

        Args:
            attack: Attack.
            batch: Training images with `attack_start`, and the noise that the attack sees.
            pixel_values: Normalized images. Pixels that augmentation has brought outside of [0, 1] are clamped: an
                attack perturbs valid images.
            labels: Classes, shape `(batch,)`, or their probabilities, shape `(batch, classes)`.
        """
        config = self.inner_model.config
        names = ("sigma", "pixel_noise") if attack.shared_noise else ("attack_sigma", "attack_noise")
        sigma, noise = (batch.get(name) if attack.through_defense else None for name in names)

        def losses_of(pixels: torch.Tensor) -> torch.Tensor:
            images = normalize(pixels, config.image_mean, config.image_std)
            return self.loss(self._draw_logits(self.inner_model, images, sigma, noise), labels, "sum")

        pixels = to_pixels(pixel_values.float(), config.image_mean, config.image_std).clamp(0, 1)
        with attacked_mode(self.inner_model):
            adversarial = attack(losses_of, pixels, batch["attack_start"], batch["step"])
        return normalize(adversarial, config.image_mean, config.image_std)

    def loss(self, draw_logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        """Return the loss that is trained on and attacked.

        Args:
            draw_logits: Logits of shape `(batch, draws, classes)`.
            labels: Classes, shape `(batch,)`, or their probabilities, shape `(batch, classes)`.
            reduction: `"mean"` or `"sum"` over images.
        """
        mean_logits = combine_draws(draw_logits, "mean").to(torch.float32)
        if self.draw_loss == "vote":
            loss = nn.functional.cross_entropy(mean_logits, labels, reduction=reduction)
        else:
            num_draws = draw_logits.shape[1]
            logits, repeated = draw_logits.flatten(0, 1).to(torch.float32), labels.repeat_interleave(num_draws, 0)
            loss = nn.functional.cross_entropy(logits, repeated, reduction=reduction)
            loss = loss / num_draws if reduction == "sum" else loss
        if not self.consistency_weight:
            return loss
        log_mean = mean_logits.log_softmax(dim=-1)
        log_draws = draw_logits.to(torch.float32).log_softmax(dim=-1)
        mean = log_mean.exp()
        divergence = (mean * (log_mean - log_draws.mean(dim=1))).sum(dim=-1)
        entropy = -(mean * log_mean).sum(dim=-1)
        penalties = divergence + self.consistency_entropy * entropy
        return loss + self.consistency_weight * (penalties.mean() if reduction == "mean" else penalties.sum())

    def _draw_logits(
        self, model: Any, pixel_values: torch.Tensor, sigma: torch.Tensor | None, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """Return logits of shape `(batch, draws, classes)`; without noise there is one draw."""
        has_defense = self.train_on in ("denoised", "smoothed")
        if sigma is None or noise is None:
            return model(pixel_values, **({"sigma": None} if has_defense else {})).logits[:, None]
        if has_defense:
            # The vote takes part in no loss, but a majority would need more time.
            options = {"num_samples": noise.shape[1], "vote": "mean", "output_draws": True}
            return model(pixel_values, sigma=sigma, pixel_noise=noise, **options).draw_logits
        noisy = add_noise(pixel_values[:, None], sigma[:, None], noise, self.inner_model.config.image_std)
        return model(noisy.flatten(0, 1)).logits.unflatten(0, noise.shape[:2])
