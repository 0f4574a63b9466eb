# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Which parameter learns how fast, and when."""

import math

import pytest
import torch
from conftest import tiny_config

from transformers_nim import NIMForImageClassification, NIMForPreTraining, NIMForRobustImageClassification
from transformers_nim.training.mae import MaskedAutoencoder
from transformers_nim.training.optimization import (
    SCHEDULES,
    layer_of_parameter,
    make_optimizer,
    make_schedule,
    parameter_groups,
    scaled_learning_rate,
)


RATE, DECAY = 0.5, 0.1


def settings_by_name(model, optimizer) -> dict[str, tuple[float, float]]:
    """What the optimizer does with each parameter: learning rate and weight decay."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(names[id(p)], (g["lr"], g["weight_decay"])) for g in optimizer.param_groups for p in g["params"]]
    assert len(found) == len(dict(found)), "a parameter is optimized twice"
    return dict(found)


def trainable(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("cls", [NIMForImageClassification, NIMForRobustImageClassification])
def test_layer_decay_of_every_parameter(cls):
    """With three layers, the head learns at the full rate and the embeddings at the fourth power of the factor."""
    model = cls(tiny_config(num_hidden_layers=3)).train()
    optimizer = make_optimizer(parameter_groups(model, RATE, DECAY, layer_decay=0.5), (0.9, 0.999))
    settings = settings_by_name(model, optimizer)

    expected = {}
    for name in ("cls_token", "position_embeddings", "patch_embeddings.projection.weight",
                 "patch_embeddings.projection.bias"):  # fmt: skip
        expected[f"nim.embeddings.{name}"] = RATE / 16
    for index, rate in enumerate([RATE / 8, RATE / 4, RATE / 2]):
        inside = [name for name in trainable(model) if name.startswith(f"nim.layers.{index}.")]
        assert len(inside) == 16
        expected |= dict.fromkeys(inside, rate)
    expected |= dict.fromkeys(("fc_norm.weight", "fc_norm.bias", "classifier.weight", "classifier.bias"), RATE)

    assert settings.keys() == expected.keys() == trainable(model)
    assert {name: rate for name, (rate, _) in settings.items()} == expected
    assert not any(name.startswith("denoiser.") for name in settings)


def test_a_trained_denoiser_has_rates_of_its_own():
    """Two layers of encoder and one of decoder: five places from the embeddings to the end."""
    model = NIMForRobustImageClassification(tiny_config(freeze_denoiser=False)).train()
    groups = parameter_groups(model, RATE, DECAY, 0.5, denoiser_factor=0.2, denoiser_layer_decay=0.1)
    settings = settings_by_name(model, make_optimizer(groups, (0.9, 0.999)))
    assert settings.keys() == trainable(model)
    rates = {name: rate for name, (rate, _) in settings.items()}
    expected = {
        "denoiser.nim.embeddings.cls_token": 4, "denoiser.nim.layers.0.mlp.fc1.weight": 3,
        "denoiser.nim.layers.1.mlp.fc1.bias": 2, "denoiser.nim.layernorm.weight": 2,
        "denoiser.decoder.embed.weight": 2,
        "denoiser.decoder.layers.0.mlp.fc2.weight": 1, "denoiser.decoder.layernorm.bias": 0,
        "denoiser.decoder.projection.weight": 0,
    }  # fmt: skip
    for name, places in expected.items():
        assert rates[name] == pytest.approx(0.2 * RATE * 0.1**places), name
    # The classifier's are what they were.
    frozen = NIMForRobustImageClassification(tiny_config()).train()
    before = settings_by_name(frozen, make_optimizer(parameter_groups(frozen, RATE, DECAY, 0.5), (0.9, 0.999)))
    assert {name: settings[name] for name in before} == before
    constant = parameter_groups(model, RATE, DECAY, 0.5, denoiser_factor=0.2)
    assert {group["lr"] for group in constant if group["name"].startswith("denoiser")} == {0.2 * RATE}
    for options, message in (({"denoiser_factor": 0}, "denoiser_learning_rate_factor"),
                             ({"denoiser_layer_decay": 1.5}, "denoiser_layer_decay must be")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            parameter_groups(model, RATE, DECAY, **options)


def test_layers_by_name():
    names = ["nim.embeddings.cls_token", "nim.layers.0.mlp.fc1.weight", "nim.layers.11.mlp.fc1.weight",
             "fc_norm.bias", "classifier.weight"]  # fmt: skip
    assert [layer_of_parameter(name, 12) for name in names] == [0, 1, 12, 13, 13]


@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
def test_weight_decay_is_for_matrices(layer_decay):
    model = NIMForRobustImageClassification(tiny_config()).train()
    optimizer = make_optimizer(parameter_groups(model, RATE, DECAY, layer_decay), (0.9, 0.999))
    decayed = {name for name, (_, decay) in settings_by_name(model, optimizer).items() if decay == DECAY}
    spared = {name for name, (_, decay) in settings_by_name(model, optimizer).items() if decay == 0}
    assert decayed | spared == trainable(model)
    matrices = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "projection", "classifier")
    assert decayed == {name for name in trainable(model) if name.split(".")[-2] in matrices and "weight" in name}
    assert {"nim.embeddings.cls_token", "nim.embeddings.position_embeddings", "fc_norm.weight"} < spared


def test_pretraining_has_one_rate_and_spares_tokens():
    model = MaskedAutoencoder(NIMForPreTraining(tiny_config()))
    optimizer = make_optimizer(parameter_groups(model, RATE, DECAY), (0.9, 0.95))
    settings = settings_by_name(model, optimizer)
    assert settings.keys() == trainable(model)
    assert {rate for rate, _ in settings.values()} == {RATE}
    spared = {name for name, (_, decay) in settings.items() if decay == 0}
    assert {name for name in spared if model.get_parameter(name).ndim > 1} == {
        "mask_token",
        "model.nim.embeddings.cls_token",
    }
    assert {name for name in settings if model.get_parameter(name).ndim < 2} < spared


def test_frozen_parameters_are_left_out():
    model = NIMForImageClassification(tiny_config())
    model.nim.requires_grad_(False)
    groups = parameter_groups(model, RATE, DECAY, layer_decay=0.5)
    assert [(group["name"], group["parameter_names"], group["lr"]) for group in groups] == [
        ("layer_3_no_decay", ["fc_norm.weight", "fc_norm.bias", "classifier.bias"], RATE),
        ("layer_3", ["classifier.weight"], RATE),
    ]
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="NIMForImageClassification has no trainable parameters"):
        parameter_groups(model, RATE, DECAY)


def test_optimizer_is_adamw_with_these_numbers():
    """The second step (where the betas begin to matter) by hand."""
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(2.0)
    groups = [{"params": [layer.weight], "lr": 0.1, "weight_decay": 0.5, "name": "all", "parameter_names": ["weight"]}]
    optimizer = make_optimizer(groups, betas=(0.9, 0.95))
    weight = 2.0
    for step, gradient in enumerate([1.0, 3.0], start=1):
        layer.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        moment = {1: 0.1, 2: 0.1 * 0.9 + 0.1 * 3}[step] / (1 - 0.9**step)
        square = {1: 0.05, 2: 0.05 * 0.95 + 0.05 * 9}[step] / (1 - 0.95**step)
        weight = weight * (1 - 0.1 * 0.5) - 0.1 * moment / (math.sqrt(square) + 1e-8)
    assert layer.weight.item() == pytest.approx(weight, rel=1e-5)
    # Names of parameters would not be plain numbers and tensors in a checkpoint.
    assert "parameter_names" not in optimizer.param_groups[0]
    assert groups[0]["parameter_names"] == ["weight"]


def rates(kind: str, warmup: int, total: int, floor: float = 0.0) -> list[list[float]]:
    """Learning rates of two groups in every step, relative to their own."""
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups = [{"params": [p], "lr": lr, "weight_decay": 0.0, "name": ""} for p, lr in zip(parameters, (0.5, 0.02))]
    optimizer = make_optimizer(groups, (0.9, 0.999))
    schedule = make_schedule(optimizer, kind, warmup, total, floor)
    found = []
    for _ in range(total + 1):
        found.append([group["lr"] / lr for group, lr in zip(optimizer.param_groups, (0.5, 0.02))])
        for parameter in parameters:
            parameter.grad = torch.zeros(2)
        optimizer.step()
        schedule.step()
    return found


# From 4 steps of warm-up to step 20, by hand: what is left is 1 - (step - 4) / 16.
@pytest.mark.parametrize(
    ("kind", "floor", "expected"),
    [
        ("cosine", 0.0, {4: 1, 8: (1 + math.sqrt(0.5)) / 2, 12: 0.5, 16: (1 - math.sqrt(0.5)) / 2, 20: 0}),
        ("cosine", 0.2, {4: 1, 8: 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2, 12: 0.6, 20: 0.2}),
        ("linear", 0.0, {4: 1, 8: 0.75, 12: 0.5, 19: 1 / 16, 20: 0}),
        ("constant", 0.0, {4: 1, 5: 1, 12: 1, 20: 1}),
    ],
)
def test_schedules(kind, floor, expected):
    found = rates(kind, warmup=4, total=20, floor=floor)
    for step, factor in ({0: 0, 1: 0.25, 2: 0.5, 3: 0.75} | expected).items():
        assert found[step] == pytest.approx([factor, factor], abs=1e-12), step


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules_without_warmup_and_with_nothing_else(kind):
    assert rates(kind, warmup=0, total=3)[0] == [1, 1]
    for step, pair in enumerate(rates(kind, warmup=3, total=3)[:3]):
        assert pair == pytest.approx([step / 3, step / 3], abs=1e-12)


def test_linear_scaling_rule():
    assert scaled_learning_rate(1.5e-4, 4096) == pytest.approx(2.4e-3)
    assert scaled_learning_rate(5e-4, 64) == pytest.approx(1.25e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 0.0), "learning_rate must be positive.*got 0.0"),
        ((-1.0, 0.0), "got -1.0 and 0.0"),
        ((1.0, -0.5), "weight_decay at least 0, got 1.0 and -0.5"),
        ((1.0, 0.0, 0.0), "layer_decay must be greater than 0 and at most 1, got 0.0"),
        ((1.0, 0.0, 1.5), "got 1.5"),
        ((1.0, 0.0, math.nan), "got nan"),
        ((math.nan, 0.0), "got nan"),
        ((math.inf, 0.0), "got inf"),
    ],
)
def test_numbers_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        parameter_groups(torch.nn.Linear(1, 1), *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cosin", 0, 10), r"must be one of \('cosine', 'linear', 'constant'\), got 'cosin'"),
        (("cosine", 11, 10), "11 warm-up steps do not fit into 10 steps"),
        (("cosine", -1, 10), "-1 warm-up steps"),
        (("cosine", 0, 10, 1.5), "from 0 to the learning rate, got 1.5 times the rate"),
        (("cosine", 0, 10, -0.1), "got -0.1 times the rate"),
    ],
)
def test_schedules_that_cannot_be(arguments, message):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=message):
        make_schedule(optimizer, *arguments)
