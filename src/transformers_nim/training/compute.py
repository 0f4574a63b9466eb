# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""State how much a run computes, so that models can be compared that took equally much.

FLOPs are those of matrix products, 2 for each multiplication, as `torch.utils.flop_counter` counts them. What gradient
checkpointing computes twice is left out.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..model.configuration_nim import NIMConfig


@dataclass(frozen=True)
class Recipe:
    """Passes and options that decide the cost of a training image.

    Attributes:
        task: `"pretraining"` or `"finetuning"`.
        mask_ratio: Share of the patches that a masked autoencoder hides; None for a denoiser.
        train_on: Images of a classifier, as in [`ClassificationObjective`].
        num_draws: Noise draws per image.
        attack_steps: Steps of the attack; 0 for none.
        attacks_defense: Whether the attack passes through noise and denoiser.
        train_denoiser: Whether the classifier's denoiser learns.
        has_denoising_loss: Whether it has a loss of its own.
    """

    task: str = "pretraining"
    mask_ratio: float | None = None
    train_on: str = "denoised"
    num_draws: int = 1
    attack_steps: int = 0
    attacks_defense: bool = True
    train_denoiser: bool = False
    has_denoising_loss: bool = False

    @classmethod
    def from_arguments(cls, task: str, args: argparse.Namespace) -> "Recipe":
        """Return what the arguments of a training command say."""
        if task == "pretraining":
            return cls(task, args.mask_ratio if args.pretext == "mae" else None)
        return cls(
            task,
            None,
            args.train_on,
            args.num_training_draws,
            args.adversarial_steps,
            args.train_on != "clean" and args.adversarial_through == "defense",
            args.train_denoiser,
            args.denoising_weight > 0,
        )


@dataclass(frozen=True)
class Compute:
    """Cost of a training image.

    Attributes:
        forward_flops: FLOPs of one forward pass through all networks.
        flops: FLOPs of all passes, forward and backward.
        denoiser_passes: Forward passes of the denoiser.
        classifier_passes: Forward passes of the classifier.
    """

    forward_flops: int
    flops: int
    denoiser_passes: int
    classifier_passes: int


@dataclass(frozen=True)
class _Pass:
    """FLOPs of a forward pass, apart by what they cost backwards: patch embedding, weights, attention."""

    embedding: int
    weights: int
    attention: int

    @property
    def forward(self) -> int:
        return self.embedding + self.weights + self.attention

    def trained(self, to_input: bool = False) -> int:
        """Return the FLOPs of a pass forward and backward to the weights, and to the input if that is needed."""
        return (3 if to_input else 2) * self.embedding + 3 * (self.weights + self.attention)

    @property
    def attacked(self) -> int:
        """FLOPs of a pass forward and backward to the input alone."""
        return 2 * (self.embedding + self.weights) + 3 * self.attention


def training_compute(config: NIMConfig, recipe: Recipe) -> Compute | None:
    """Return what a training image takes, or None for a classifier of another kind, whose layers are unknown."""
    denoiser = _denoiser(config, recipe.mask_ratio)
    if recipe.task == "pretraining":
        return Compute(denoiser.forward, denoiser.trained(), 1, 0)
    if config.classifier_config is not None:
        return None
    classifier = _classifier(config)
    denoises = recipe.train_on == "denoised"
    attack_draws = recipe.attack_steps * (recipe.num_draws if recipe.attacks_defense else 1)
    flops = recipe.num_draws * classifier.trained(to_input=recipe.train_denoiser) + attack_draws * classifier.attacked
    denoiser_passes = 0
    if denoises:
        denoised_attacks = attack_draws if recipe.attacks_defense else 0
        own_passes = (2 if recipe.attack_steps else 1) if recipe.has_denoising_loss else 0
        denoiser_passes = recipe.num_draws + denoised_attacks + own_passes
        flops += recipe.num_draws * (denoiser.trained() if recipe.train_denoiser else denoiser.forward)
        flops += denoised_attacks * denoiser.attacked + own_passes * denoiser.trained()
    forward = classifier.forward + (denoiser.forward if denoises else 0)
    return Compute(forward, flops, denoiser_passes, recipe.num_draws + attack_draws)


def compute_record(task: str, args: argparse.Namespace, config: NIMConfig, num_images: int) -> dict[str, int] | None:
    """Return what a run computes, as `all_results.json` holds it, or None if that is unknown.

    Args:
        task: `"pretraining"` or `"finetuning"`.
        args: Arguments of the training command.
        config: Config of the model that is trained.
        num_images: Images of all updates.
    """
    compute = training_compute(config, Recipe.from_arguments(task, args))
    if compute is None:
        return None
    return {
        "flops_per_image": compute.flops,
        "total_flops": compute.flops * num_images,
        "denoiser_passes_per_image": compute.denoiser_passes,
        "classifier_passes_per_image": compute.classifier_passes,
    }


def describe_compute(record: Mapping[str, int]) -> str:
    """Return what [`compute_record`] holds in words."""
    return f"{in_flops(record['flops_per_image'])} per image, {in_flops(record['total_flops'])} in all"


def in_flops(number: float) -> str:
    """Return a number of FLOPs in words, such as `"1.43 GFLOP"`."""
    power = min(max(int(math.log10(max(number, 1)) // 3), 2), 7)
    return f"{number / 1000**power:,.3g} {' KMGTPEZ'[power]}FLOP"


def _encoder(config: NIMConfig, tokens: int) -> _Pass:
    rows, columns = config.patch_grid
    embedding = 2 * rows * columns * _patch_values(config) * config.hidden_size
    depth, widths = config.num_hidden_layers, (config.hidden_size, config.intermediate_size)
    return _Pass(embedding, *_layers(tokens, depth, *widths))


def _classifier(config: NIMConfig) -> _Pass:
    rows, columns = config.patch_grid
    encoder = _encoder(config, 1 + rows * columns)
    head = 2 * config.hidden_size * (config.num_labels or 0)
    return _Pass(encoder.embedding, encoder.weights + head, encoder.attention)


def _denoiser(config: NIMConfig, mask_ratio: float | None) -> _Pass:
    """Return encoder and decoder; a masked autoencoder encodes the visible patches only."""
    rows, columns = config.patch_grid
    tokens = 1 + rows * columns
    visible = tokens if mask_ratio is None else 1 + int((tokens - 1) * (1 - mask_ratio))
    encoder, width = _encoder(config, visible), config.decoder_hidden_size
    depth, inner = config.decoder_num_hidden_layers, config.decoder_intermediate_size
    weights, attention = _layers(tokens, depth, width, inner)
    ends = 2 * visible * config.hidden_size * width + 2 * tokens * width * _patch_values(config)
    return _Pass(encoder.embedding, encoder.weights + weights + ends, encoder.attention + attention)


def _patch_values(config: NIMConfig) -> int:
    return math.prod(config.patch_shape) * config.num_channels


def _layers(tokens: int, depth: int, width: int, inner: int) -> tuple[int, int]:
    """Return the FLOPs of transformer layers: of queries, keys, values, outputs and MLP, and of attention."""
    return depth * 2 * tokens * (4 * width**2 + 2 * width * inner), depth * 2 * 2 * tokens**2 * width
