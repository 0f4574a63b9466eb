# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Objectives: what is learned from a batch; and attacks on training images: what they may do and what they see."""

import functools
import random

import accelerate
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import random_picture, tiny_model

from transformers_nim import NIMForImageClassification, NIMForRobustImageClassification, NIMImageProcessor
from transformers_nim.data.augmentation import LabelMixer
from transformers_nim.data.draws import NoiseDraw
from transformers_nim.model.noise import UniformSigma, parse_sigma
from transformers_nim.training.attack import TrainingAttack
from transformers_nim.training.mae import MaskedAutoencoder, draw_mask
from transformers_nim.training.objectives import (
    TRAIN_ON,
    ClassificationObjective,
    denoising_loss,
    masking_loss,
)


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


def batch_of(pixel_values, labels, draw=None, seed: int = 0) -> dict:
    """A batch as the DataLoader makes it, in update 3."""
    batch = {"pixel_values": pixel_values, "labels": labels, "step": 3}
    if draw is not None:
        drawn = [
            draw(image.shape, torch.Generator().manual_seed(seed + row)) for row, image in enumerate(pixel_values)
        ]
        batch |= {name: torch.stack([each[name] for each in drawn]) for name in drawn[0]}
    return batch


def objective_of(model, train_on: str, attack=None, mix=None, **options) -> ClassificationObjective:
    return ClassificationObjective(model, model, train_on, mix or LabelMixer(5, 0, 0, 0), attack, **options)


def adversarial_images(
    model, pixel_values, labels, eps, steps, step_size=None, sigma=None, seed=0, num_draws=1, norm="Linf"
) -> torch.Tensor:
    """With eps and step size in x/255; sigma None for an attack on the classifier alone."""
    through_defense = sigma is not None
    attack = TrainingAttack(
        eps / 255, steps, None if step_size is None else step_size / 255, norm, through_defense=through_defense
    )
    train_on = "denoised" if isinstance(model, NIMForRobustImageClassification) else "clean"
    draw = NoiseDraw(parse_sigma(sigma) if through_defense else None, num_draws, norm)
    batch = batch_of(pixel_values, labels, draw, seed)
    return objective_of(model, train_on, attack).attacked(attack, batch, pixel_values, labels)


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
    with pytest.raises(ValueError, match=r"got \(?8"):
        adversarial_images(model, pixel_values[:, :, :8], labels, EPS, 1, sigma=50)
    assert model.training
    assert not model.denoiser.training


def test_is_a_function_of_its_draws(model, pixel_values, labels):
    def attack(seed, sigma):
        return adversarial_images(model, pixel_values, labels, EPS, 2, seed=seed, sigma=sigma)

    for sigma in (None, 50):
        assert torch.equal(attack(1, sigma), attack(1, sigma))
        assert not torch.equal(attack(1, sigma), attack(2, sigma))


@pytest.mark.parametrize("train_on", ["denoised", "smoothed", "noisy"])
@pytest.mark.parametrize(("shared", "num_draws"), [(True, 1), (True, 3), (False, 2)])
def test_every_pass_of_a_step_sees_the_same_noise_or_the_attack_its_own(
    shared, num_draws, train_on, pixel_values, labels
):
    """What the encoder is given: in the attack's steps, and then in the training pass."""
    model, seen = classifier_for(train_on).train(), []
    model.nim.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    # Far below the noise.
    attack = TrainingAttack(1e-5, 2, shared_noise=shared)
    draw = NoiseDraw(UniformSigma(20, 60), num_draws, "Linf", for_attack=not shared)
    batch = batch_of(pixel_values.clamp(-1, 1), labels, draw)
    objective_of(model, train_on, attack)(batch)
    first, second, trained = seen
    assert len(first) == 8 * num_draws
    torch.testing.assert_close(first, second, atol=2e-2, rtol=0)
    if shared:
        torch.testing.assert_close(first, trained, atol=2e-2, rtol=0)
    else:
        assert ((first - trained).flatten(1).std(dim=1) > 0.03).all()
    if train_on != "denoised":
        std = torch.tensor(model.config.image_std)[:, None, None]
        sigma, noise = (
            batch[name] for name in (("sigma", "pixel_noise") if shared else ("attack_sigma", "attack_noise"))
        )
        expected = batch["pixel_values"][:, None] + noise * sigma[:, None, None, None, None] / 255 / std
        torch.testing.assert_close(first, expected.flatten(0, 1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("train_on", TRAIN_ON)
@pytest.mark.parametrize("num_draws", [1, 2])
def test_the_loss_that_is_attacked_is_the_loss_that_is_trained_on(train_on, num_draws, pixel_values, labels):
    """On the same perturbed images and without dropout, to rounding: the noise is shared."""
    if train_on == "clean" and num_draws > 1:
        return
    model, attacked = classifier_for(train_on).train(), {}

    class Watched(TrainingAttack):
        def __call__(self, losses_of, pixels, start, update):
            adversarial = super().__call__(losses_of, pixels, start, update)
            with torch.no_grad():
                attacked["loss"] = losses_of(adversarial).item() / len(pixels)
                attacked["clean"] = losses_of(pixels).item() / len(pixels)
            return adversarial

    sigma = None if train_on == "clean" else UniformSigma(20, 60)
    mixer = LabelMixer(5, 0, 0, 0.2)
    batch = batch_of(pixel_values, labels, NoiseDraw(sigma, num_draws, "Linf"))
    trained = objective_of(model, train_on, Watched(EPS / 255, 3), mixer)(batch).item()
    assert trained == pytest.approx(attacked["loss"], rel=1e-5)
    assert trained > attacked["clean"] + 0.05
    # Other noise is another loss, on which the attack does less.
    if train_on != "clean":
        for name in ("sigma", "pixel_noise"):
            batch[f"attack_{name.removeprefix('pixel_')}"] = batch[name].flip(0)
        independent = objective_of(model, train_on, Watched(EPS / 255, 3, shared_noise=False), mixer)(batch).item()
        assert abs(independent - attacked["loss"]) > 1e-3
        assert independent < trained


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_an_image_s_perturbation_does_not_depend_on_its_batch(norm, model, pixel_values, labels):
    eps = EPS if norm == "Linf" else 255
    options = {"sigma": 50, "num_draws": 2, "norm": norm}
    together = adversarial_images(model, pixel_values, labels, eps, 3, **options)
    for row in (0, 5):
        image, label = pixel_values[row : row + 1], labels[row : row + 1]
        alone = adversarial_images(model, image, label, eps, 3, seed=row, **options)
        if norm == "L2":
            torch.testing.assert_close(alone[0], together[row], atol=1e-4, rtol=0)
        else:
            # A gradient that rounding makes change its sign.
            assert ((alone[0] - together[row]).abs() > 1e-5).float().mean() < 2e-3


def test_a_perturbation_in_l2(model, pixel_values, labels):
    attacked = adversarial_images(model, pixel_values, labels, 128, 3, sigma=50, norm="L2")
    distance = (pixels_of(model, attacked) - pixels_of(model, pixel_values)).flatten(1).norm(dim=1)
    assert (distance <= 128 / 255 + 1e-4).all()
    assert (distance > 0.9 * 128 / 255).all()


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
    attacked = adversarial_images(model, pixel_values, labels, EPS, 10, sigma=None)
    torch.testing.assert_close(adversarial_images(model, pixel_values, certain, EPS, 10, sigma=None), attacked)
    # Half of two classes is neither of them. The radius is one where gradients tell which loss rises most.
    classes = [(labels + shift) % 5 for shift in (1, 2)]
    mixed = 0.5 * sum(torch.nn.functional.one_hot(each, 5) for each in classes)
    between, *others = (
        adversarial_images(model, pixel_values, targets, 1.0, 10, sigma=None) for targets in (mixed, *classes)
    )
    for images in others:
        assert not torch.allclose(between, images)
        assert mean_loss(model, between, mixed, None, 1) > mean_loss(model, images, mixed, None, 1) + 0.01
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
    finally:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()


def noise_of(seed: int, sigma, shape) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return sigma.sample(1, generator=generator), torch.randn(shape, generator=generator)


def test_denoising_is_the_model_s_loss_under_each_image_s_own_noise(model, pixel_values, labels):
    denoiser, sigma = model.denoiser, UniformSigma(20, 60)
    loss = denoising_loss(denoiser, batch_of(pixel_values, labels, NoiseDraw(sigma), seed=5))
    losses = []
    for row, image in enumerate(pixel_values):
        drawn, noise = noise_of(5 + row, sigma, image.shape)
        losses.append(denoiser(image[None], sigma=drawn, pixel_noise=noise[None]).loss.item())
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert np.ptp(losses) > 1e-3


def test_masking_hides_patches_by_each_image_s_own_numbers(model, pixel_values, labels):
    masked = MaskedAutoencoder(model.denoiser)
    draw = functools.partial(draw_mask, config=masked.config)
    loss = masking_loss(masked, batch_of(pixel_values, labels, draw, seed=5))
    scores = torch.stack([torch.rand(16, generator=torch.Generator().manual_seed(5 + row)) for row in range(8)])
    assert torch.equal(loss, masked(pixel_values, mask_scores=scores).loss)


@pytest.mark.parametrize("train_on", TRAIN_ON)
def test_classification_sees_what_it_is_to_be_trained_on(train_on, model, pixel_values, labels):
    sigma = UniformSigma(20, 60)
    classifier = classifier_for(train_on)
    batch = batch_of(pixel_values, labels, None if train_on == "clean" else NoiseDraw(sigma))
    loss = objective_of(classifier, train_on)(batch)
    losses = []
    std = torch.tensor(model.config.image_std)[:, None, None]
    for row, image in enumerate(pixel_values.unsqueeze(1)):
        drawn, noise = noise_of(row, sigma, image.shape[1:])
        if train_on != "clean":
            image = image + noise * drawn / 255 / std
        if train_on == "denoised":
            image = classifier.denoiser.denoise(image, sigma=0)
        bare = bare_classifier(classifier).eval()
        losses.append(bare(image, labels=labels[row : row + 1]).loss.item())
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-4)


def classifier_for(train_on: str):
    """A classifier without dropout."""
    model = tiny_model(denoise=train_on != "smoothed")
    return model if train_on in ("denoised", "smoothed") else bare_classifier(model).eval()


def bare_classifier(model) -> NIMForImageClassification:
    bare = NIMForImageClassification(model.config).train()
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("denoiser.")})
    return bare


@pytest.mark.parametrize("through_defense", [True, False])
def test_the_attack_comes_between_mixing_and_noise(through_defense, model, pixel_values, labels, monkeypatch):
    attack, seen = TrainingAttack(EPS / 255, 1, through_defense=through_defense), []

    def attacked(self, losses_of, pixels, start, update):
        seen.append((pixels, start, update, losses_of(pixels).item()))
        return pixels + 0.1

    monkeypatch.setattr(TrainingAttack, "__call__", attacked)
    mixed = pixel_values * 0.5, torch.full((8, 5), 0.2)
    batch = batch_of(pixel_values, labels, NoiseDraw(UniformSigma(20, 60), attack_norm="Linf"), seed=9)
    loss = objective_of(model.eval(), "denoised", attack, lambda *_: mixed)(batch)
    ((pixels, start, update, summed),) = seen
    torch.testing.assert_close(pixels, pixels_of(model, mixed[0]).clamp(0, 1))
    assert start is batch["attack_start"]
    assert update == 3
    # The sum of the images' losses, with noise or without.
    std = torch.tensor(model.config.image_std)[:, None, None]
    clamped = model.denoiser.clamp_pixels(mixed[0])
    clean = objective_of(model, "denoised", mix=lambda *_: (clamped, mixed[1]))
    bare = objective_of(bare_classifier(model).eval(), "clean", mix=lambda *_: (clamped, mixed[1]))
    expected = (clean if through_defense else bare)(batch if through_defense else batch_of(pixel_values, labels))
    assert summed == pytest.approx(8 * expected.item(), rel=1e-5)
    plain = objective_of(model, "denoised", mix=lambda *_: (clamped + 0.1 / std, mixed[1]))
    assert loss.item() == pytest.approx(plain(batch).item(), rel=1e-5)
    model.train()


def test_gradients_reach_the_classifier_and_not_the_denoiser(model, pixel_values, labels):
    attack = TrainingAttack(EPS / 255, 1)
    objective = objective_of(model, "denoised", attack, LabelMixer(5))
    np.random.seed(0)
    objective(batch_of(pixel_values, labels, NoiseDraw(UniformSigma(0, 30), attack_norm="Linf"))).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith("denoiser.")}
    model.zero_grad(set_to_none=True)


DRAWS = {"draw_loss": "mean", "consistency_weight": 2.0, "consistency_entropy": 0.5}


def test_gradients_reach_a_denoiser_that_is_trained(pixel_values, labels):
    """Every weight that is trainable, by the classification alone and by the denoising loss alone."""
    model = tiny_model(freeze_denoiser=False).train()
    attack = TrainingAttack(EPS / 255, 1)
    batch = batch_of(pixel_values, labels, NoiseDraw(UniformSigma(20, 60), 2, "Linf"))
    objective_of(model, "denoised", attack, **DRAWS)(batch).backward()
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any(name.startswith("denoiser.") for name in names)
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0} == names
    model.zero_grad(set_to_none=True)
    objective_of(model, "denoised")._denoising_loss(batch, pixel_values, pixel_values).backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {name for name in names if name.startswith("denoiser.")}


def test_the_denoising_loss_is_that_of_pretraining(pixel_values, labels):
    model = tiny_model(freeze_denoiser=False).train()
    batch = batch_of(pixel_values, labels, NoiseDraw(UniformSigma(20, 60), 2, "Linf"))
    plain, weighted = (objective_of(model, "denoised", denoising_weight=weight)(batch) for weight in (0.0, 3.0))
    expected = denoising_loss(model.denoiser, batch)
    assert (weighted - plain).item() == pytest.approx(3 * expected.item(), rel=1e-5)
    # With an attack, the mean with that from attacked images to the clean ones.
    attack = TrainingAttack(64 / 255, 1)
    objective = objective_of(model, "denoised", attack)
    attacked = objective.attacked(attack, batch, pixel_values, labels)
    std = torch.tensor(model.config.image_std)[:, None, None]
    noisy = attacked + batch["pixel_noise"][:, 0] * batch["sigma"][:, None, None, None] / 255 / std
    restored = model.denoiser.restore(noisy, batch["sigma"])[2]
    from_attacked = (restored - pixel_values).square().mean()
    found = objective._denoising_loss(batch, pixel_values, attacked)
    assert found.item() == pytest.approx((expected.item() + from_attacked.item()) / 2, rel=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_losses_of_several_draws_by_hand(smoothing):
    """Two images, two draws, three classes."""
    probabilities = np.array([[[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]], [[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]])
    # Logits are known up to a number.
    logits = torch.tensor(np.log(probabilities) + np.array([1.0, -2.0])[:, None, None], dtype=torch.float32)
    labels, targets = torch.tensor([0, 2]), np.eye(3)[[0, 2]]
    if smoothing:
        targets = (1 - smoothing) * targets + smoothing / 3
        labels = torch.tensor(targets, dtype=torch.float32)
    mean = probabilities.mean(axis=1)
    vote = -(targets * np.log(mean)).sum(axis=-1)
    each = -(targets[:, None] * np.log(probabilities)).sum(axis=-1).mean(axis=1)
    divergence = (mean[:, None] * np.log(mean[:, None] / probabilities)).sum(axis=-1).mean(axis=1)
    entropy = -(mean * np.log(mean)).sum(axis=-1)
    for options, expected in (
        ({}, vote),
        ({"draw_loss": "mean"}, each),
        ({"consistency_weight": 4.0}, vote + 4 * divergence),
        (DRAWS, each + 2 * (divergence + 0.5 * entropy)),
    ):
        objective = ClassificationObjective(None, None, "smoothed", None, **options)
        assert objective.loss(logits, labels).item() == pytest.approx(expected.mean(), rel=1e-5)
        assert objective.loss(logits, labels, "sum").item() == pytest.approx(expected.sum(), rel=1e-5)


def test_one_draw_is_itself_by_either_loss():
    logits = torch.randn(4, 1, 5, generator=torch.Generator().manual_seed(0))
    vote, mean = (
        ClassificationObjective(None, None, "denoised", None, draw_loss=kind).loss(logits, torch.arange(4))
        for kind in ("vote", "mean")
    )
    assert torch.equal(vote, mean)


def test_gradient_checkpointing_of_several_draws_saves_memory_and_changes_nothing(pixel_values, labels):
    batch = batch_of(pixel_values, labels, NoiseDraw(UniformSigma(20, 60), 4, "Linf"))
    attack, found, kept = TrainingAttack(EPS / 255, 1), [], []
    for checkpointed in (False, True):
        model, sizes = tiny_model(freeze_denoiser=False).train(), []
        if checkpointed:
            # Renamed in transformers 5.23.
            (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss = objective_of(model, "denoised", attack, **DRAWS)(batch)
        loss.backward()
        found.append((loss.detach(), model.denoiser.decoder.projection.weight.grad, model.classifier.weight.grad))
        kept.append(sum(sizes))
    for plain, saved in zip(*found):
        torch.testing.assert_close(saved, plain, rtol=1e-4, atol=1e-5)
    assert kept[1] < kept[0] / 3
