# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The FLOPs of an update by formula against those that are counted."""

import pytest
import torch
from conftest import tiny_config
from torch.utils.flop_counter import FlopCounterMode

from transformers_nim import NIMForImageClassification, NIMForPreTraining, NIMForRobustImageClassification
from transformers_nim.data.augmentation import LabelMixer
from transformers_nim.data.draws import NoiseDraw
from transformers_nim.model.noise import UniformSigma
from transformers_nim.training.attack import TrainingAttack
from transformers_nim.training.compute import Recipe, in_flops, training_compute
from transformers_nim.training.mae import MaskedAutoencoder
from transformers_nim.training.objectives import ClassificationObjective


NUM_IMAGES = 2


def counted(loss_of, model) -> int:
    """FLOPs per image; attention is written out, as the counter knows matrix products alone on every device."""
    getattr(model, "model", model).set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        loss_of().backward()
    assert counter.get_total_flops() % NUM_IMAGES == 0
    return counter.get_total_flops() // NUM_IMAGES


@pytest.mark.parametrize("mask_ratio", [None, 0.75, 0.4])
def test_pretraining(mask_ratio):
    config = tiny_config()
    images = torch.randn(NUM_IMAGES, config.num_channels, *config.image_shape)
    model = NIMForPreTraining(config)
    model = model if mask_ratio is None else MaskedAutoencoder(model, mask_ratio)
    compute = training_compute(config, Recipe(mask_ratio=mask_ratio))
    assert compute.flops == counted(lambda: model(images).loss, model)
    assert (compute.denoiser_passes, compute.classifier_passes) == (1, 0)


@pytest.mark.parametrize(
    ("recipe", "passes"),
    [
        (Recipe("finetuning"), (1, 1)),
        (Recipe("finetuning", num_draws=3, attack_steps=2), (9, 9)),
        (Recipe("finetuning", num_draws=3, attack_steps=2, attacks_defense=False), (3, 5)),
        (Recipe("finetuning", train_denoiser=True, attack_steps=1), (2, 2)),
        (Recipe("finetuning", train_denoiser=True, has_denoising_loss=True), (2, 1)),
        (Recipe("finetuning", num_draws=2, attack_steps=1, train_denoiser=True, has_denoising_loss=True), (6, 4)),
        (Recipe("finetuning", train_on="smoothed", num_draws=2, attack_steps=1), (0, 4)),
        (Recipe("finetuning", train_on="noisy", num_draws=2, attack_steps=1), (0, 4)),
        (Recipe("finetuning", train_on="clean", attack_steps=10, attacks_defense=False), (0, 11)),
    ],
)
def test_finetuning(recipe, passes):
    fields = {"denoise": recipe.train_on == "denoised", "freeze_denoiser": not recipe.train_denoiser}
    config = tiny_config(**fields)
    has_defense = recipe.train_on in ("denoised", "smoothed")
    model = (NIMForRobustImageClassification if has_defense else NIMForImageClassification)(config).train()
    sigma = None if recipe.train_on == "clean" else UniformSigma(10, 20)
    draw = NoiseDraw(sigma, recipe.num_draws, "Linf" if recipe.attack_steps else None)
    shape = torch.Size((config.num_channels, *config.image_shape))
    samples = [draw(shape, torch.Generator().manual_seed(seed)) for seed in range(NUM_IMAGES)]
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    batch |= {"pixel_values": torch.randn(NUM_IMAGES, *shape), "labels": torch.tensor([0, 1]), "step": 0}
    attack = None
    if recipe.attack_steps:
        attack = TrainingAttack(8 / 255, recipe.attack_steps, through_defense=recipe.attacks_defense)
    objective = ClassificationObjective(
        model, model, recipe.train_on, LabelMixer(5, 0, 0, 0), attack,
        denoising_weight=1.0 if recipe.has_denoising_loss else 0.0,
    )  # fmt: skip
    compute = training_compute(config, recipe)
    assert compute.flops == counted(lambda: objective(batch), model)
    assert (compute.denoiser_passes, compute.classifier_passes) == passes


def test_in_words():
    assert [in_flops(number) for number in (5e5, 2.5e6, 1.234e9, 9.99e14, 2e15, 3.1e21)] == [
        "0.5 MFLOP", "2.5 MFLOP", "1.23 GFLOP", "999 TFLOP", "2 PFLOP", "3.1 ZFLOP",
    ]  # fmt: skip
