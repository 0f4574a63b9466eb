# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Objectives: what is learned from a batch; and attacks on training images: what they may do and what they see."""

import random

import accelerate
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import random_picture, tiny_model

from transformers_nim import NIMForImageClassification, NIMImageProcessor
from transformers_nim.data.augmentation import LabelMixer
from transformers_nim.model.noise import UniformSigma
from transformers_nim.training.mae import MaskedAutoencoder
from transformers_nim.training.objectives import (
    TRAIN_ON,
    ClassificationObjective,
    TrainingAttack,
    denoising_loss,
    masking_loss,
)
from transformers_nim.utils.seeding import derive_seed_32


EPS = 8.0
# Of float32 pixels that were normalized and brought back.
ROUNDING = 1e-6


@pytest.fixture(scope="module")
def model():
    """With dropout and stochastic depth, and in train mode, as it is in training."""
    return tiny_model(hidden_dropout_prob=0.3, drop_path_rate=0.3).train()


@pytest.fixture(scope="module")
def pixel_values(model):
    pictures = [random_picture(seed, (32, 32)) for seed in range(8)]
    return NIMImageProcessor.from_config(model.config)(pictures, return_tensors="pt")["pixel_values"]


@pytest.fixture(scope="module")
def labels(model, pixel_values):
    """What the model says of clean images, so that there is something to change."""
    model.eval()
    with torch.no_grad():
        labels = model(pixel_values, sigma=None).logits.argmax(-1)
    model.train()
    return labels


def pixels_of(model, pixel_values) -> torch.Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.config.image_mean, model.config.image_std))
    return pixel_values * std + mean


def adversarial_images(model, pixel_values, labels, eps, steps, step_size=None, **kwargs) -> torch.Tensor:
    """With eps and step size in x/255."""
    attack = TrainingAttack(eps / 255, steps, None if step_size is None else step_size / 255)
    return attack(model, pixel_values, labels, **kwargs)


def mean_loss(model, pixel_values, labels, sigma, draws: int = 16) -> float:
    model.eval()
    generators = [torch.Generator().manual_seed(draw) for draw in range(draws)]
    with torch.no_grad():
        losses = [model(pixel_values, labels=labels, sigma=sigma, generator=g).loss.item() for g in generators]
    model.train()
    return float(np.mean(losses))


@pytest.mark.parametrize(("eps", "steps", "step_size"), [(8, 3, None), (0.5, 1, 10.0), (64, 2, 1.0)])
@pytest.mark.parametrize("sigma", [None, 50])
def test_stays_in_the_ball_and_in_valid_pixels(model, pixel_values, labels, eps, steps, step_size, sigma):
    adversarial = adversarial_images(model, pixel_values, labels, eps, steps, step_size, sigma=sigma)
    assert adversarial.shape == pixel_values.shape
    assert adversarial.dtype == torch.float32
    assert not adversarial.requires_grad
    clean, attacked = pixels_of(model, pixel_values), pixels_of(model, adversarial)
    difference = (attacked - clean).abs() * 255
    assert difference.max() <= eps + 255 * ROUNDING
    # It uses what it is allowed: a start anywhere in the ball, and steps.
    assert difference.max() > 0.9 * eps
    assert attacked.min() >= -ROUNDING
    assert attacked.max() <= 1 + ROUNDING
    assert clean.min() < 0.5 * eps / 255
    assert clean.max() > 1 - 0.5 * eps / 255


def test_steps_are_in_units_of_255(model, pixel_values, labels):
    """From the same start, far from the edge of the ball, a step that is longer by 1/255."""
    first, second = (
        pixels_of(model, adversarial_images(model, pixel_values, labels, 64, 1, step_size, sigma=None))
        for step_size in (1.0, 2.0)
    )
    difference = (second - first).abs() * 255
    assert difference.median().item() == pytest.approx(1, abs=1e-3)
    # Four steps of 2.5 eps / 4 by default.
    explicit, default = (
        adversarial_images(model, pixel_values, labels, EPS, 4, step_size, sigma=None)
        for step_size in (2.5 * EPS / 4, None)
    )
    torch.testing.assert_close(default, explicit, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigma", [None, 25])
def test_makes_the_loss_rise(model, pixel_values, labels, sigma):
    """More than noise of the same size does, and more with more steps."""
    signs = torch.randn(pixel_values.shape, generator=torch.Generator().manual_seed(0)).sign()
    std = torch.tensor(model.config.image_std)[:, None, None]
    perturbed = [pixel_values, pixel_values + signs * EPS / 255 / std]
    perturbed += [adversarial_images(model, pixel_values, labels, EPS, steps, sigma=sigma) for steps in (1, 10)]
    clean, noisy, one_step, attacked = (mean_loss(model, images, labels, sigma) for images in perturbed)
    assert attacked > one_step > noisy
    assert attacked > clean + 0.1
    assert attacked - clean > 3 * abs(noisy - clean)


def test_attacks_the_model_in_eval_mode(model, pixel_values, labels):
    """Dropout in an attack would be noise that the defense does not have."""
    training = adversarial_images(model, pixel_values, labels, EPS, 3, sigma=None)
    evaluated = adversarial_images(model.eval(), pixel_values, labels, EPS, 3, sigma=None)
    model.train()
    assert torch.equal(training, evaluated)


def test_leaves_everything_else_alone(model, pixel_values, labels):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = pixel_values.clone(), labels.clone()
    for training in (True, False):
        model.train(training)
        adversarial_images(model, pixel_values, labels, EPS, 2, seed=5, sigma=50)
        modes = [module.training for module in model.modules()]
        assert modes == [module.training for module in model.train(training).modules()]
    model.train()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(pixel_values, inputs[0])
    assert torch.equal(labels, inputs[1])
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])


def test_mode_is_restored_after_an_error(model, pixel_values, labels):
    with pytest.raises(ValueError, match="forward cannot be given"):
        adversarial_images(model, pixel_values, labels, EPS, 1, sigmas=50)
    assert model.training
    with pytest.raises(ValueError, match=r"got \(?8"):
        adversarial_images(model, pixel_values[:, :, :8], labels, EPS, 1, sigma=50)
    assert model.training
    assert not model.denoiser.training


def test_is_a_function_of_its_seed(model, pixel_values, labels):
    def attack(seed, sigma):
        return adversarial_images(model, pixel_values, labels, EPS, 2, seed=seed, sigma=sigma)

    for sigma in (None, 50):
        assert torch.equal(attack(1, sigma), attack(1, sigma))
        assert not torch.equal(attack(1, sigma), attack(2, sigma))


def test_every_step_sees_noise_of_its_own(model, pixel_values, labels, monkeypatch):
    seen = []
    restore = model.denoiser.restore

    def watched(noisy, sigma, *args, **kwargs):
        seen.append((noisy.detach(), sigma))
        return restore(noisy, sigma, *args, **kwargs)

    monkeypatch.setattr(model.denoiser, "restore", watched)
    adversarial_images(model, pixel_values, labels, 1e-3, 3, sigma=UniformSigma(20, 60))
    assert len(seen) == 3
    sigmas = torch.stack([sigma for _, sigma in seen])
    assert sigmas.min() >= 20
    assert sigmas.max() <= 60
    assert len(sigmas.unique()) == sigmas.numel()
    # The perturbation itself is far below the noise.
    assert (seen[0][0] - seen[1][0]).std() > 0.1


def test_through_the_defense_or_the_classifier_alone(model, pixel_values, labels):
    """Each attack is the better one against what it went through."""
    through_defense = adversarial_images(model, pixel_values, labels, EPS, 10, sigma=0)
    through_classifier = adversarial_images(model, pixel_values, labels, EPS, 10, sigma=None)
    assert not torch.equal(through_defense, through_classifier)
    for sigma, better, worse in (
        (0, through_defense, through_classifier),
        (None, through_classifier, through_defense),
    ):
        assert mean_loss(model, better, labels, sigma, 1) > mean_loss(model, worse, labels, sigma, 1) + 0.05


def test_a_classifier_without_a_defense(model, pixel_values, labels):
    bare = bare_classifier(model)
    attacked = adversarial_images(bare, pixel_values, labels, EPS, 3)
    assert torch.equal(attacked, adversarial_images(model, pixel_values, labels, EPS, 3, sigma=None))


def test_labels_as_probabilities(model, pixel_values, labels):
    """Certain ones are classes; uniform ones are another goal, whose loss rises."""
    certain = torch.nn.functional.one_hot(labels, 5).float()
    attacked = adversarial_images(model, pixel_values, labels, EPS, 3, sigma=None)
    torch.testing.assert_close(adversarial_images(model, pixel_values, certain, EPS, 3, sigma=None), attacked)
    # Half a class is not the class.
    other_labels = (labels + 1) % 5
    mixed = 0.5 * (certain + torch.nn.functional.one_hot(other_labels, 5))
    between = adversarial_images(model, pixel_values, mixed, EPS, 3, sigma=None)
    assert not torch.allclose(between, attacked)
    assert not torch.allclose(between, adversarial_images(model, pixel_values, other_labels, EPS, 3, sigma=None))
    assert mean_loss(model, between, mixed, None, 1) > mean_loss(model, attacked, mixed, None, 1)
    uniform = torch.full((8, 5), 0.2)
    other = adversarial_images(model, pixel_values, uniform, EPS, 10, sigma=None)
    assert not torch.allclose(other, attacked)
    assert mean_loss(model, other, uniform, None, 1) > mean_loss(model, pixel_values, uniform, None, 1) + 0.1


def test_augmented_images_are_clamped_first(model, labels):
    """Random erasing fills in noise far outside of [0, 1], which is no image."""
    noise = torch.randn((8, 3, 32, 32), generator=torch.Generator().manual_seed(0)) * 5
    attacked = pixels_of(model, adversarial_images(model, noise, labels, EPS, 2, sigma=None))
    clean = pixels_of(model, noise).clamp(0, 1)
    assert (attacked - clean).abs().max() * 255 <= EPS + 255 * ROUNDING
    assert attacked.min() >= -ROUNDING
    assert attacked.max() <= 1 + ROUNDING


def test_model_prepared_for_half_precision(pixel_values, labels):
    """Accelerate puts a wrapper around forward, through which arguments are still checked."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    try:
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
        prepared = accelerator.prepare(tiny_model().train())
        inner = accelerator.unwrap_model(prepared)
        attacked = adversarial_images(inner, pixel_values, labels, EPS, 5, sigma=None)
        assert attacked.dtype == torch.float32
        difference = (pixels_of(inner, attacked) - pixels_of(inner, pixel_values)).abs().max() * 255
        assert 0.9 * EPS < difference <= EPS + 255 * ROUNDING
        assert mean_loss(inner, attacked, labels, None, 1) > mean_loss(inner, pixel_values, labels, None, 1) + 0.1
        with pytest.raises(ValueError, match=r"forward cannot be given \['sigmas'\]"):
            adversarial_images(inner, pixel_values, labels, EPS, 1, sigmas=0)
    finally:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()


@pytest.mark.parametrize(
    ("eps", "steps", "step_size"),
    [(0, 1, None), (-1, 1, None), (8, 1, None), (0.1, 0, None), (0.1, 1, 0), (0.1, 1, -2.0), (float("nan"), 1, None)],
)
def test_numbers_out_of_range(eps, steps, step_size):
    with pytest.raises(ValueError, match=rf"in x/255\), got {eps}, {steps} and {step_size}"):
        TrainingAttack(eps, steps, step_size)


def test_an_attack_in_words():
    assert str(TrainingAttack(8 / 255, 2)) == "PGD-2, Linf 8/255, through the defense"
    assert str(TrainingAttack(0.5 / 255, 1, through_defense=False)) == "PGD-1, Linf 0.5/255, through the classifier"


def batch_of(pixel_values, labels, seed: int = 0, step: int = 3) -> dict:
    return {
        "pixel_values": pixel_values,
        "labels": labels,
        "noise_seed": torch.arange(seed, seed + len(pixel_values)),
        "step": step,
    }


def noise_of(seed: int, sigma, shape) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return sigma.sample(1, generator=generator), torch.randn(shape, generator=generator)


def test_denoising_is_the_model_s_loss_under_each_image_s_own_noise(model, pixel_values, labels):
    denoiser, sigma = model.denoiser, UniformSigma(20, 60)
    loss = denoising_loss(denoiser, batch_of(pixel_values, labels, seed=5), sigma)
    losses = []
    for row, image in enumerate(pixel_values):
        drawn, noise = noise_of(5 + row, sigma, image.shape)
        losses.append(denoiser(image[None], sigma=drawn, pixel_noise=noise[None]).loss.item())
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert np.ptp(losses) > 1e-3


def test_masking_hides_patches_by_each_image_s_own_numbers(model, pixel_values, labels):
    masked = MaskedAutoencoder(model.denoiser)
    loss = masking_loss(masked, batch_of(pixel_values, labels, seed=5), masked.config)
    scores = torch.stack([torch.rand(16, generator=torch.Generator().manual_seed(5 + row)) for row in range(8)])
    assert torch.equal(loss, masked(pixel_values, mask_scores=scores).loss)


@pytest.mark.parametrize("train_on", TRAIN_ON)
def test_classification_sees_what_it_is_to_be_trained_on(train_on, model, pixel_values, labels):
    model.eval()
    sigma, batch = UniformSigma(20, 60), batch_of(pixel_values, labels)
    classifier = model if train_on == "denoised" else bare_classifier(model).eval()
    loss = ClassificationObjective(classifier, classifier, train_on, sigma, LabelMixer(5, 0, 0, 0))(batch)
    losses = []
    std = torch.tensor(model.config.image_std)[:, None, None]
    for row, image in enumerate(pixel_values.unsqueeze(1)):
        drawn, noise = noise_of(row, sigma, image.shape[1:])
        if train_on != "clean":
            image = image + noise * drawn / 255 / std
        if train_on == "denoised":
            image = model.denoiser.denoise(image, sigma=0)
        losses.append(model(image, sigma=None, labels=labels[row : row + 1]).loss.item())
    model.train()
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-4)


def bare_classifier(model) -> NIMForImageClassification:
    bare = NIMForImageClassification(model.config).train()
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("denoiser.")})
    return bare


@pytest.mark.parametrize(("through_defense", "expected"), [(True, UniformSigma(20, 60)), (False, None)])
def test_the_attack_comes_between_mixing_and_noise(
    through_defense, expected, model, pixel_values, labels, monkeypatch
):
    attack, seen = TrainingAttack(EPS / 255, 1, through_defense=through_defense), []

    def attacked(self, target, images, targets, seed, **kwargs):
        seen.append((target, images, targets, seed, kwargs))
        return images + 1

    monkeypatch.setattr(TrainingAttack, "__call__", attacked)
    mixed = pixel_values * 0.5, torch.full((8, 5), 0.2)
    sigma = UniformSigma(20, 60)
    objective = ClassificationObjective(model.eval(), model, "denoised", sigma, lambda *_: mixed, attack, seed=4)
    loss = objective(batch_of(pixel_values, labels, seed=9))
    ((target, images, targets, seed, kwargs),) = seen
    assert target is model
    assert images is mixed[0]
    assert targets is mixed[1]
    assert kwargs == {"sigma": expected}
    # Of the run, the step and the batch's first image.
    assert seed == derive_seed_32(4, "attack", 3, 9)
    plain = ClassificationObjective(model, model, "denoised", sigma, lambda *_: (mixed[0] + 1, mixed[1]), seed=4)
    assert torch.equal(loss, plain(batch_of(pixel_values, labels, seed=9)))
    model.train()


def test_gradients_reach_the_classifier_and_not_the_denoiser(model, pixel_values, labels):
    attack = TrainingAttack(EPS / 255, 1)
    objective = ClassificationObjective(model, model, "denoised", UniformSigma(0, 30), LabelMixer(5), attack)
    np.random.seed(0)
    objective(batch_of(pixel_values, labels)).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith("denoiser.")}
    model.zero_grad(set_to_none=True)
