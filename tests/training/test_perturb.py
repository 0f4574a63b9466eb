# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Adversarial images for a training loop of one's own."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_model
from transformers import ViTConfig, ViTForImageClassification

from transformers_nim import NIMForImageClassification
from transformers_nim.attacks.geometry import perturbation_norm
from transformers_nim.model.pixels_nim import normalize, to_pixels
from transformers_nim.training import TrainingAttack, perturb_batch


ATTACK = TrainingAttack(eps=8 / 255, steps=5)


@pytest.fixture
def model():
    return tiny_model(hidden_dropout_prob=0.3, drop_path_rate=0.3, num_samples=4).train()


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def batch(model):
    pixels = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 5
    return {"pixel_values": normalize(pixels, model.config.image_mean, model.config.image_std), "labels": labels}


def loss(model, batch, **options):
    """The loss of eval mode, in which there is no dropout."""
    model.eval()
    with torch.no_grad():
        value = model(**{**batch, "num_samples": 1, **options}).loss
    model.train()
    return value.item()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_images_are_attacked_under_the_noise_of_the_training_pass(model, batch, norm):
    clean = dict(batch)
    eps = ATTACK.eps if norm == "Linf" else 1.0
    perturbed = perturb_batch(model, batch, replace(ATTACK, norm=norm, eps=eps))
    assert batch.keys() == clean.keys(), "the caller's batch is left alone"
    assert perturbed.keys() == {"pixel_values", "labels", "sigma", "pixel_noise"}
    assert ((perturbed["sigma"] > 0) & (perturbed["sigma"] < 30)).all()
    assert len(perturbed["sigma"].unique()) == 8, "that of fine-tuning, of each image its own"

    before, after = (
        to_pixels(b["pixel_values"], model.config.image_mean, model.config.image_std) for b in (batch, perturbed)
    )
    distances = perturbation_norm(after - before, norm)
    assert distances.max() <= eps + 1e-5
    assert distances.min() > 0.9 * eps
    assert after.min() >= -1e-6
    assert after.max() <= 1 + 1e-6

    def rise(**noise):
        return loss(model, {**perturbed, **noise}) - loss(model, {**perturbed, **noise, **batch})

    # Under other noise the same perturbation does less.
    others = [rise(pixel_noise=torch.randn(8, 3, 32, 32)) for _ in range(10)]
    assert rise() > 0
    assert rise() > sum(others) / len(others)


def test_the_model_is_left_as_it_was(model, batch):
    model(**batch).loss.backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    flags = [p.requires_grad for p in model.parameters()], [module.training for module in model.modules()]
    with torch.no_grad():
        perturb_batch(model, batch, ATTACK)
    assert flags == ([p.requires_grad for p in model.parameters()], [module.training for module in model.modules()])
    for parameter, before in zip(model.parameters(), gradients):
        assert parameter.grad is before is None or torch.equal(parameter.grad, before)


def test_choices_of_the_attack(model, batch):
    given = {**batch, "sigma": torch.full((8,), 40.0), "pixel_noise": torch.randn(8, 3, 32, 32)}
    rises = {}
    for name, attack in {
        "shared": ATTACK,
        "independent": replace(ATTACK, shared_noise=False),
        "classifier": replace(ATTACK, through_defense=False),
    }.items():
        perturbed = perturb_batch(model, given, attack)
        assert torch.equal(perturbed["sigma"], given["sigma"])
        assert torch.equal(perturbed["pixel_noise"], given["pixel_noise"])
        rises[name] = loss(model, perturbed) - loss(model, given)
        rises[f"{name}, off"] = loss(model, perturbed, sigma=None, pixel_noise=None) - loss(
            model, given, sigma=None, pixel_noise=None
        )
    assert rises["shared"] > max(rises["independent"], rises["classifier"])
    assert rises["classifier, off"] > max(rises["shared, off"], rises["independent, off"])


def test_warmup(model, batch):
    attack = replace(ATTACK, warmup_steps=10)
    std = torch.tensor(model.config.image_std)[:, None, None]
    distances = [
        ((perturb_batch(model, batch, attack, update)["pixel_values"] - batch["pixel_values"]) * std)
        .abs()
        .max()
        .item()
        for update in (0, 5, 10, 20)
    ]
    assert distances == pytest.approx([0, ATTACK.eps / 2, ATTACK.eps, ATTACK.eps], abs=1e-6)


def test_wrapped_and_undefended_models(model, batch):
    torch.manual_seed(0)
    expected = perturb_batch(model, batch, ATTACK)["pixel_values"]
    torch.manual_seed(0)
    torch.testing.assert_close(perturb_batch(torch.nn.DataParallel(model), batch, ATTACK)["pixel_values"], expected)

    undefended = tiny_model(NIMForImageClassification).train()
    perturbed = perturb_batch(undefended, batch, ATTACK)
    assert perturbed.keys() == batch.keys()
    with torch.no_grad():
        assert undefended(**perturbed).loss > undefended(**batch).loss + 0.3

    # Train mode without the defense.
    model.config.finetuning_sigma = None
    perturbed = perturb_batch(model, batch, ATTACK)
    assert perturbed["sigma"] is None
    assert loss(model, perturbed) > loss(model, {**batch, "sigma": None}) + 0.3


def test_errors(model, batch):
    with pytest.raises(ValueError, match="an attack needs labels"):
        perturb_batch(model, {"pixel_values": batch["pixel_values"]}, ATTACK)
    fields = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with pytest.raises(ValueError, match="config of ViTForImageClassification does not hold image_mean"):
        perturb_batch(ViTForImageClassification(ViTConfig(**fields)), batch, ATTACK)
