# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import math
import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from transformers_nim import ConstantSigma, GammaSigma, NIMConfig, SigmaDistribution, UniformSigma, parse_sigma
from transformers_nim.model import noise
from transformers_nim.model.noise import (
    _DISTRIBUTIONS,
    add_noise,
    check_sigma_tensor,
    draw_noise,
    register_sigma_distribution,
    split_generator,
)
from transformers_nim.model.pixel_classifier_nim import PixelClassifier
from transformers_nim.model.smoothing_nim import certifiable_sigma
from transformers_nim.robustness.evaluation import EvaluationOptions


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("sigma", "said"),
    [
        (0, None),
        (2, None),
        (63.75, None),
        ({"type": "uniform", "low": 0, "high": 30}, None),
        (0.25, "sigma 0.25 is in units of 0..255 pixels, where it is hardly any noise; .* pass 63.75"),
        ({"type": "uniform", "low": 0, "high": 0.5}, "sigma 0.25 is in units"),
    ],
)
def test_implausible_units_are_warned_of(sigma, said, monkeypatch):
    told = []
    monkeypatch.setattr(noise.logger, "warning_once", told.append)
    noise.warn_of_sigma(sigma)
    assert len(told) == (said is not None)
    assert said is None or re.search(said, told[0])


def test_every_way_in_warns_of_units(robust_model, monkeypatch):
    told = []
    monkeypatch.setattr(noise.logger, "warning_once", told.append)
    pixels = torch.zeros(1, 3, 32, 32)
    ways = [
        lambda: NIMConfig(defense_sigma=0.25),
        lambda: robust_model(pixels, sigma=0.25),
        lambda: PixelClassifier(robust_model, sigma=0.25)(pixels),
        lambda: certifiable_sigma(robust_model.config, 0.25),
        lambda: EvaluationOptions(output_dir="outputs", sigma=0.25),
        lambda: EvaluationOptions(output_dir="outputs", sigmas=[None, 0.25]),
    ]
    for number, way in enumerate(ways, 1):
        way()
        assert len(told) >= number
    assert {text[:10] for text in told} == {"sigma 0.25"}


def test_gamma_scale_multiplies():
    """The paper's Gamma(25, scale 3) has mean 75 and s.d. 15; with a rate of 3 it would be 8.3 and 1.7."""
    sigma = GammaSigma(25, 3).sample(20_000, generator=generator())
    assert abs(sigma.mean().item() - 75) < 0.5
    assert abs(sigma.std().item() - 15) < 0.3
    assert GammaSigma(25, 3).mean == 75


def test_uniform_and_constant():
    sigma = UniformSigma(10, 30).sample(20_000, generator=generator())
    assert sigma.min() >= 10
    assert sigma.max() < 30
    assert abs(sigma.mean().item() - UniformSigma(10, 30).mean) < 0.2
    assert ConstantSigma(70).sample(3).tolist() == [70, 70, 70]


@pytest.mark.parametrize("distribution", [ConstantSigma(70), GammaSigma(25, 3), UniformSigma(0, 30)])
def test_mapping_round_trip(distribution):
    assert parse_sigma(distribution.to_dict()) == distribution
    torch.testing.assert_close(
        distribution.sample(5, generator=generator(1)), distribution.sample(5, generator=generator(1)), rtol=0, atol=0
    )
    assert distribution.sample(5).dtype == torch.float32


def test_numbers_are_constant():
    assert parse_sigma(25) == ConstantSigma(25)
    assert parse_sigma(np.float32(25)) == ConstantSigma(25)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (-1, "-1"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (True, "True"),
        ("70", "'70'"),
        ({"type": "poisson"}, "poisson.*constant.*gamma.*uniform"),
        ({"value": 3}, "unknown sigma distribution None"),
        ({"type": "gamma", "concentration": 25, "rate": 1 / 3}, r"\['concentration', 'scale'\], got .*rate"),
        ({"type": "gamma", "concentration": 0, "scale": 3}, "concentration.*greater than 0, got 0"),
        ({"type": "uniform", "low": 5, "high": 1}, "high.*at least 5, got 1"),
        ({"type": "constant"}, "'value'"),
    ],
)
def test_wrong_sigma_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_sigma(spec)


def test_new_distributions_can_be_registered(monkeypatch):
    monkeypatch.setattr("transformers_nim.model.noise._DISTRIBUTIONS", dict(_DISTRIBUTIONS))

    @register_sigma_distribution
    @dataclass(frozen=True)
    class LogNormalSigma(SigmaDistribution):
        type: ClassVar[str] = "lognormal"
        mu: float
        spread: float

        def sample(self, num, *, device=None, generator=None):
            return (self.mu + self.spread * torch.randn(num, device=device, generator=generator)).exp()

        @property
        def mean(self):
            return float(np.exp(self.mu + self.spread**2 / 2))

    spec = {"type": "lognormal", "mu": 4.0, "spread": 0.2}
    config = NIMConfig(defense_sigma=spec)
    assert parse_sigma(config.defense_sigma) == LogNormalSigma(4.0, 0.2)
    with pytest.raises(ValueError, match="'lognormal' is already used"):
        register_sigma_distribution(type("Another", (LogNormalSigma,), {}))


def test_added_noise_is_in_pixel_units():
    """At sigma 51 noise of 1 moves a pixel by 0.2, which is 0.2 / std after normalization."""
    std = [0.2, 0.4]
    noisy = add_noise(torch.zeros(1, 2, 3, 3), torch.tensor([51.0]), torch.ones(1, 2, 3, 3), std)
    torch.testing.assert_close(noisy[0, :, 0, 0], torch.tensor([1.0, 0.5]))


def test_noise_without_generator_has_the_wanted_scale():
    torch.manual_seed(0)
    images = torch.zeros(64, 3, 16, 16)
    sigma, noise = draw_noise(images, GammaSigma(25, 3), num_samples=4)
    assert sigma.shape == (64, 4)
    assert noise.shape == (64, 4, 3, 16, 16)
    assert len(sigma.unique()) == 256, "every image and draw has a sigma of its own"
    assert abs(noise.std().item() - 1) < 0.01
    assert abs(noise.mean().item()) < 0.01


def test_given_sigma_is_kept_over_the_draws():
    sigma, _ = draw_noise(torch.zeros(2, 1, 4, 4), torch.tensor([10.0, 20.0]), num_samples=3)
    assert sigma.tolist() == [[10, 10, 10], [20, 20, 20]]


def test_one_generator_gives_each_image_its_own_seed():
    images = torch.zeros(6, 1, 4, 4)
    sigma, noise = draw_noise(images, UniformSigma(0, 50), 2, generator=generator())
    # A longer batch begins like a shorter one, and two batches in a row are one long batch.
    first, _ = draw_noise(images[:2], UniformSigma(0, 50), 2, generator=generator())
    torch.testing.assert_close(first, sigma[:2], rtol=0, atol=0)
    running = generator()
    parts = [draw_noise(part, UniformSigma(0, 50), 2, generator=running)[1] for part in images.split([1, 3, 2])]
    torch.testing.assert_close(torch.cat(parts), noise, rtol=0, atol=0)
    assert not torch.equal(noise[0], noise[1])


def test_generators_per_image():
    images = torch.zeros(2, 1, 4, 4)
    _, noise = draw_noise(images, ConstantSigma(1), generator=[generator(7), generator(7)])
    torch.testing.assert_close(noise[0], noise[1], rtol=0, atol=0)
    with pytest.raises(ValueError, match="got 1 generators for a batch of 2"):
        split_generator([generator()], 2)


def test_seeds_per_image():
    """A column of a data set, as a Trainer's collator makes a tensor of it."""
    images = torch.zeros(2, 1, 4, 4)
    expected = draw_noise(images, UniformSigma(0, 50), 2, generator=[generator(5), generator(6)])
    for drawn, wanted in zip(draw_noise(images, UniformSigma(0, 50), 2, generator=torch.tensor([5, 6])), expected):
        torch.testing.assert_close(drawn, wanted, rtol=0, atol=0)
    for wrong in (torch.tensor([5]), torch.tensor(5), torch.tensor([5.0, 6.0])):
        with pytest.raises(ValueError, match=r"seeds must be integers of shape \(2,\)"):
            draw_noise(images, ConstantSigma(1), generator=wrong)


def test_no_noise_is_drawn_for_sigma_0():
    state = torch.get_rng_state()
    _, noise = draw_noise(torch.zeros(2, 1, 4, 4), ConstantSigma(0))
    assert not noise.any()
    assert torch.equal(state, torch.get_rng_state())
    # Generators go on as they always did.
    _, noise = draw_noise(torch.zeros(2, 1, 4, 4), ConstantSigma(0), generator=generator())
    assert noise.all()


def test_generator_leaves_the_global_state_alone():
    state = torch.get_rng_state()
    draw_noise(torch.zeros(2, 1, 4, 4), GammaSigma(25, 3), 3, generator=generator())
    assert torch.equal(state, torch.get_rng_state())


def test_given_noise_is_used_as_it_is():
    given = torch.randn(2, 1, 4, 4)
    _, noise = draw_noise(torch.zeros(2, 1, 4, 4), ConstantSigma(1), pixel_noise=given)
    torch.testing.assert_close(noise[:, 0], given)
    for shape, num_samples in (((2, 1, 4, 4), 3), ((2, 1, 4, 5), 1), ((1, 1, 4, 4), 1)):
        with pytest.raises(ValueError, match=r"pixel_noise must have the shape \(2"):
            draw_noise(torch.zeros(2, 1, 4, 4), ConstantSigma(1), num_samples, pixel_noise=torch.zeros(shape))


def test_sigma_tensors_are_checked():
    assert check_sigma_tensor(torch.tensor(5), 3).tolist() == [5, 5, 5]
    assert check_sigma_tensor(torch.tensor([1, 2, 3]), 3).tolist() == [1, 2, 3]
    for wrong in (torch.zeros(2), torch.zeros(3, 1), torch.tensor([1.0, -1, 0]), torch.tensor(float("nan"))):
        with pytest.raises(ValueError, match="sigma must be"):
            check_sigma_tensor(wrong, 3)


def test_an_accelerator_is_not_waited_for(monkeypatch):
    """What is wrong becomes NaN there, and nothing else changes."""
    monkeypatch.setattr(noise, "_on_host", lambda tensor: False)
    sigma = torch.tensor([0, 25.5, -1, math.nan, math.inf])
    expected = torch.tensor([0, 25.5, math.nan, math.nan, math.nan])
    assert torch.equal(check_sigma_tensor(sigma, 5).nan_to_num(-7), expected.nan_to_num(-7))


def test_fewer_images_pass_at_once_on_a_cpu():
    from transformers_nim.model.noise import default_batch_size

    assert default_batch_size(torch.device("cpu")) == 64
    assert default_batch_size(torch.device("cuda")) == 256
