# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Random numbers of training images: which, in what order, and that nothing else decides them."""

import itertools

import pytest
import torch
from conftest import tiny_config
from test_images import digits, streamed_digits

from transformers_nim.data.augmentation import pretraining_transform
from transformers_nim.data.draws import NoiseDraw, unit_ball_point
from transformers_nim.data.images import training_batches
from transformers_nim.model.noise import ConstantSigma, GammaSigma, UniformSigma, draw_noise
from transformers_nim.utils.seeding import image_generators


SHAPE = torch.Size((3, 8, 8))
CROP = pretraining_transform(tiny_config(image_size=8, num_channels=1))


def batches(draw, num=3, batch_size=4, data=None, **options) -> list[dict]:
    stream = training_batches(data or digits(), 1, CROP, batch_size, 0, draw=draw, **options)
    return list(itertools.islice(stream, num))


@pytest.mark.parametrize("sigma", [ConstantSigma(40), UniformSigma(0, 30), GammaSigma(25, 3)])
def test_noise_is_that_of_the_models_own_draws(sigma):
    """Bit for bit, from a generator of the image's seed, with an attack and without."""
    for draw in (NoiseDraw(sigma), NoiseDraw(sigma, attack_norm="Linf"), NoiseDraw(sigma, 1, "L2", True)):
        (batch,) = batches(draw, 1)
        expected = draw_noise(batch["pixel_values"], sigma, generator=image_generators(batch["noise_seed"]))
        assert torch.equal(batch["sigma"], expected[0][:, 0])
        assert torch.equal(batch["pixel_noise"], expected[1])


def test_what_is_drawn():
    def drawn(*arguments):
        found = NoiseDraw(*arguments)(SHAPE, torch.Generator().manual_seed(0))
        return {name: tuple(tensor.shape) for name, tensor in found.items()}

    sigma, image = UniformSigma(0, 30), tuple(SHAPE)
    assert drawn(None) == {}
    assert drawn(sigma) == {"sigma": (), "pixel_noise": (1, *image)}
    assert drawn(None, 1, "Linf") == {"attack_start": image}
    assert drawn(sigma, 4, "L2") == {"sigma": (), "pixel_noise": (4, *image), "attack_start": image}
    assert drawn(sigma, 2, "Linf", True) == {
        "sigma": (), "pixel_noise": (2, *image), "attack_start": image, "attack_sigma": (),
        "attack_noise": (2, *image),
    }  # fmt: skip


def test_the_attack_s_own_noise_is_other_noise():
    found = NoiseDraw(UniformSigma(0, 30), 2, "Linf", True)(SHAPE, torch.Generator().manual_seed(0))
    assert found["sigma"] != found["attack_sigma"]
    draws = torch.cat([found["pixel_noise"], found["attack_noise"]]).flatten(1)
    assert (torch.corrcoef(draws) - torch.eye(4)).abs().max() < 0.3
    many = NoiseDraw(UniformSigma(0, 30), 500)(SHAPE, torch.Generator().manual_seed(0))["pixel_noise"]
    assert many.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"batch_size": 6}, {"num_processes": 2}])
def test_an_image_s_numbers_depend_on_nothing_else(options):
    draw = NoiseDraw(UniformSigma(0, 30), 2, "L2", True)
    expected = {int(seed): (batch, row) for batch in batches(draw, 6) for row, seed in enumerate(batch["noise_seed"])}
    for batch in batches(draw, 2, **options):
        assert len(batch["pixel_noise"]) == options.get("batch_size", 4)
        for row, seed in enumerate(batch["noise_seed"]):
            other, place = expected[int(seed)]
            assert batch.keys() == other.keys()
            assert all(torch.equal(batch[name][row], other[name][place]) for name in batch if name != "undecodable")


def test_a_stream_has_them_too():
    data = streamed_digits()
    found = batches(NoiseDraw(UniformSigma(0, 30), attack_norm="Linf"), 3, data=data)
    (later,) = batches(NoiseDraw(UniformSigma(0, 30), attack_norm="Linf"), 1, data=data, first_batch=2)
    assert torch.equal(found[2]["pixel_noise"], later["pixel_noise"])
    assert torch.equal(found[2]["attack_start"], later["attack_start"])


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_starts_fill_the_ball_evenly(norm):
    shape = torch.Size((1, 1, 2))
    points = torch.stack([unit_ball_point(norm, shape, torch.Generator().manual_seed(seed)) for seed in range(4000)])
    radii = points.flatten(1).norm(dim=1, p=float("inf") if norm == "Linf" else 2)
    assert radii.max() <= 1 + 1e-6
    # Of two dimensions, a quarter lies within half the radius.
    for radius in (0.25, 0.5, 0.75):
        assert (radii < radius).float().mean().item() == pytest.approx(radius**2, abs=0.025)
    assert points.mean(dim=0).abs().max() < 0.03


def test_wrong_options():
    with pytest.raises(ValueError, match="num_draws must be an int of at least 1, got 0"):
        NoiseDraw(None, 0)
    with pytest.raises(ValueError, match=r"attack_norm must be one of .*'L1'"):
        NoiseDraw(None, 1, "L1")


def test_a_distribution_that_draws_nonsense():
    class Broken(ConstantSigma):
        def sample(self, num, *, device=None, generator=None):
            return torch.full((num,), float("nan"))

    with pytest.raises(ValueError, match="drew a sigma that is negative, undefined or infinite, got nan"):
        NoiseDraw(Broken(1))(SHAPE, torch.Generator())
