# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Compute the loss of one training step: denoise, fill in hidden patches, or classify under attack.

A batch is one of [`training_batches`], to which [`TrainingRun`] adds `step`. The noise of an image comes from its
`noise_seed`, so the loss does not depend on how images are shared out among processes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from ..attacks import EOTPGD, PixelClassifier
from ..data.augmentation import LabelMixer
from ..data.images import Batch
from ..model.configuration_nim import NIMConfig
from ..model.noise import SigmaDistribution, add_noise, draw_noise
from ..utils.seeding import derive_seed_32, image_generators
from .evaluation import eval_mode
from .mae import draw_mask_scores


def denoising_loss(model: nn.Module, batch: Batch, sigma: SigmaDistribution) -> torch.Tensor:
    """Return the mean loss of restoring images, each under its own sigma and noise (NIM, arXiv 2302.01056).

    Args:
        model: Prepared [`NIMForPreTraining`].
        batch: Training images.
        sigma: Distribution of sigma, in units of 0..255 pixels.
    """
    drawn, noise = _draw_noise(batch, sigma)
    return model(batch["pixel_values"], sigma=drawn, pixel_noise=noise).loss


def masking_loss(model: nn.Module, batch: Batch, config: NIMConfig) -> torch.Tensor:
    """Return the mean loss of filling in hidden patches, other ones in each image (MAE, arXiv 2111.06377).

    Args:
        model: Prepared [`MaskedAutoencoder`].
        batch: Training images.
        config: Config of the model.
    """
    return model(batch["pixel_values"], mask_scores=draw_mask_scores(config, _generators(batch))).loss


@dataclass(frozen=True)
class TrainingAttack:
    """PGD on training images (Madry et al., arXiv 1706.06083), with fresh noise in every step.

    Attributes:
        eps: Radius of the Linf ball, in pixels of [0, 1].
        steps: Number of steps.
        step_size: Length of a step, in pixels of [0, 1]; `2.5 * eps / steps` by default.
        through_defense: Whether to attack noise, denoiser and classifier, or the classifier alone.

    Raises:
        ValueError: A number is out of range.
    """

    eps: float
    steps: int
    step_size: float | None = None
    through_defense: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 1 or self.steps < 1 or (self.step_size is not None and not self.step_size > 0):
            raise ValueError(
                "adversarial training needs 0 < eps <= 1, at least 1 step and a step size > 0 (pixels of [0, 1]; on"
                f" the command line in x/255), got {self.eps}, {self.steps} and {self.step_size}"
            )

    def __str__(self) -> str:
        through = "defense" if self.through_defense else "classifier"
        return f"PGD-{self.steps}, Linf {self.eps * 255:g}/255, through the {through}"

    def __call__(
        self, model: PreTrainedModel, pixel_values: torch.Tensor, labels: torch.Tensor, seed: int = 0, **kwargs: Any
    ) -> torch.Tensor:
        """Attack a model in eval mode (no dropout, no stochastic depth), and leave it in its mode.

        Args:
            model: Classifier to attack, not wrapped.
            pixel_values: Normalized images, shape `(batch, channels, height, width)`. Pixels that augmentation has
                brought outside of [0, 1] are clamped: an attack perturbs valid images.
            labels: Classes, shape `(batch,)`, or their probabilities, shape `(batch, classes)`.
            seed: Seed of start and noise.
            kwargs: Arguments of the model's forward, such as `sigma`.

        Returns:
            Normalized adversarial images, float32.
        """
        with eval_mode(model):
            classifier = PixelClassifier(model, **kwargs)
            attack = EOTPGD(
                losses=("ce",),
                steps=self.steps,
                restarts=1,
                num_draws=1,
                batch_size=len(pixel_values),
                step_size=self.step_size,
                keep_best=False,
            )
            pixels = classifier.to_pixels(pixel_values.float()).clamp(0, 1)
            adversarial = attack(classifier, pixels, labels, eps=self.eps, seed=seed)
        return classifier.normalize(adversarial)


TRAIN_ON = ("denoised", "noisy", "clean")


@dataclass(frozen=True)
class ClassificationObjective:
    """Classify images that are mixed, attacked, made noisy and denoised, in this order.

    Attributes:
        model: Prepared classifier.
        inner_model: The same classifier, not wrapped, which is attacked.
        train_on: `"denoised"` images (De^3; a [`NIMForRobustImageClassification`]), `"noisy"` or `"clean"` ones.
        sigma: Distribution of sigma, in units of 0..255 pixels; unused for clean images.
        mix_labels: Mixes images and smooths labels.
        attack: Attack on the images, or None.
        seed: The run's seed.
    """

    model: nn.Module
    inner_model: Any
    train_on: str
    sigma: SigmaDistribution
    mix_labels: LabelMixer
    attack: TrainingAttack | None = None
    seed: int = 0

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return the mean loss of a batch."""
        pixel_values, labels = self.mix_labels(batch["pixel_values"], batch["labels"])
        if self.attack is not None:
            seed = derive_seed_32(self.seed, "attack", batch["step"], int(batch["noise_seed"][0]))
            # Classifiers without a defense take no sigma.
            kwargs = {"sigma": self.sigma if self.attack.through_defense else None}
            kwargs = kwargs if self.train_on == "denoised" else {}
            pixel_values = self.attack(self.inner_model, pixel_values, labels, seed, **kwargs)
        if self.train_on == "clean":
            return self.model(pixel_values, labels=labels).loss
        sigma, noise = _draw_noise(batch, self.sigma)
        if self.train_on == "noisy":
            noisy = add_noise(pixel_values, sigma, noise, self.inner_model.config.image_std)
            return self.model(noisy, labels=labels).loss
        return self.model(pixel_values, labels=labels, sigma=sigma, pixel_noise=noise).loss


def _generators(batch: Batch) -> list[torch.Generator]:
    return image_generators(batch["noise_seed"], device=batch["pixel_values"].device)


def _draw_noise(batch: Batch, sigma: SigmaDistribution) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one sigma per image, shape `(batch,)`, and standard normal noise in the shape of the images."""
    drawn, noise = draw_noise(batch["pixel_values"], sigma, generator=_generators(batch))
    return drawn[:, 0], noise[:, 0]
