# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Certificates of De^3 models: whose noise, whose votes, when refused, and whether attacks respect them."""

import doctest

import numpy as np
import pytest
import torch
from conftest import random_picture, tiny_config, tiny_model

from transformers_nim import ABSTAIN, GammaSigma, NIMForRobustImageClassification, NIMImageProcessor, UniformSigma
from transformers_nim.model.certification import certify


SIGMA = 20.0
SMALL = {"sigma": SIGMA, "n0": 30, "n": 100}


@pytest.fixture(scope="module")
def images(robust_model):
    processor = NIMImageProcessor.from_config(robust_model.config)
    return processor([random_picture(seed) for seed in range(14)], return_tensors="pt")["pixel_values"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Seen:
    """What the denoiser's encoder is given while this is active."""

    def __init__(self, model):
        self.model, self.batches = model, []

    def __enter__(self):
        self.hook = self.model.denoiser.nim.register_forward_pre_hook(lambda _, args: self.batches.append(args[0]))
        return self

    def __exit__(self, *_):
        self.hook.remove()

    @property
    def draws(self):
        return torch.cat(self.batches)


# Noise and votes.


def test_votes_are_those_of_single_predictions(robust_model, images):
    """One-draw predictions of forward under the same noise, drawn here by hand."""
    (certificate,) = robust_model.certify(images[:1], generator=[seeded(5)], **SMALL)
    generator = seeded(5)
    noise = torch.stack([torch.randn(images.shape[1:], generator=generator) for _ in range(130)])
    with torch.no_grad():
        one_draw = [robust_model(images[:1], sigma=SIGMA, pixel_noise=draw.unsqueeze(0)) for draw in noise]
    votes = torch.cat([outputs.logits for outputs in one_draw]).argmax(dim=-1).numpy()
    assert certificate.candidate == np.bincount(votes[:30]).argmax()
    assert certificate.counts == tuple(np.bincount(votes[30:], minlength=5))
    assert len(set(votes)) > 1
    halves = iter((votes[:30], votes[30:]))
    assert certificate == certify(lambda _: np.bincount(next(halves), minlength=5), SIGMA, 30, 100)
    assert robust_model.predict_smoothed(images[:1], SIGMA, 130, generator=[seeded(5)])[0].counts == tuple(
        np.bincount(votes, minlength=5)
    )


def test_noise_depends_on_the_generator_alone(robust_model, images):
    expected = robust_model.certify(images[:4], generator=seeded(1), **SMALL)
    assert len({certificate.counts for certificate in expected}) == 4
    for max_batch_size in (1, 7, 64):
        assert (
            robust_model.certify(images[:4], generator=seeded(1), max_batch_size=max_batch_size, **SMALL) == expected
        )
    # One image at a time, from the generator's own sequence of seeds; or with a generator for each.
    generator = seeded(1)
    assert [robust_model.certify(image[None], generator=generator, **SMALL)[0] for image in images[:4]] == expected
    alone = robust_model.certify(images[2:3], generator=[seeded(9)], **SMALL)
    among = robust_model.certify(images[1:4], generator=[seeded(8), seeded(9), seeded(8)], **SMALL)
    assert among[1] == alone[0]
    assert robust_model.certify(images[:4], generator=seeded(2), **SMALL) != expected


def test_noise_does_not_depend_on_the_batch_whatever_the_size_of_images():
    """torch fills tensors in blocks of 16 numbers: of sizes like 100, two draws at once are not two in a row."""
    model = tiny_model(num_channels=1, image_size=10, patch_size=5)
    draws = []
    for size in (1, 3, 50):
        with Seen(model) as seen:
            model.certify(torch.zeros(1, 1, 10, 10), SIGMA, n0=4, n=9, generator=seeded(), max_batch_size=size)
        draws.append(seen.draws)
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])
    together = torch.randn(4, 1, 10, 10, generator=seeded())
    apart = torch.stack([torch.randn(1, 10, 10, generator=generator) for generator in [seeded()] for _ in range(4)])
    assert not torch.equal(together, apart), "there is nothing to test"


def test_all_draws_are_independent(robust_model, images):
    """Of different images, and those of choice and bound: no noise is used twice, and none is correlated."""
    same = images[:1].expand(2, -1, -1, -1)
    with Seen(robust_model) as seen:
        robust_model.certify(same, generator=seeded(), max_batch_size=8, **SMALL)
    noise = (seen.draws - images[0]).flatten(1)
    assert len(noise) == 2 * 130
    correlation = torch.corrcoef(noise).fill_diagonal_(0)
    assert correlation.abs().max() < 6 / noise.shape[1] ** 0.5


def test_noise_is_gaussian_in_pixels_and_not_clamped(robust_model, images):
    with Seen(robust_model) as seen:
        robust_model.certify(images[:1], sigma=63.75, n0=10, n=300, generator=seeded())
    std = torch.tensor(robust_model.config.image_std)[:, None, None]
    mean = torch.tensor(robust_model.config.image_mean)[:, None, None]
    noise = (seen.draws - images[0]) * std
    # 0.25 in pixels of [0, 1], the same in every channel whatever it is divided by.
    assert torch.allclose(noise.std(dim=(0, 2, 3)), torch.tensor(0.25), rtol=0.01)
    assert (noise.abs() > 2 * 0.25).float().mean() == pytest.approx(0.0455, abs=0.002)
    pixels = seen.draws * std + mean
    assert (pixels < 0).float().mean() > 0.01
    assert (pixels > 1).float().mean() > 0.01


def test_without_a_generator_the_global_one_is_used(robust_model, images):
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(robust_model.certify(images[:1], **SMALL))
    assert results[0] == results[1] != results[2]
    state = torch.get_rng_state()
    robust_model.certify(images[:1], generator=seeded(), **SMALL)
    assert torch.equal(torch.get_rng_state(), state)


def test_passes_are_reported(robust_model, images):
    passes = []
    certificates = robust_model.certify(images[:2], max_batch_size=64, on_pass=passes.append, **SMALL)
    assert passes == [30, 64, 36] * 2
    assert [certificate.num_draws for certificate in certificates] == [130, 130]
    passes.clear()
    options = {"sequential": True, "target_radius": 0.001, "n0": 20, "n": 5000}
    (certificate,) = robust_model.certify(images[10:11], SIGMA, on_pass=passes.append, generator=seeded(), **options)
    assert certificate.radius >= 0.001
    assert sum(passes) == certificate.num_draws < 500


def test_sigma_of_the_config():
    model = tiny_model(defense_sigma=33)
    for certificate in (
        model.certify(torch.zeros(1, 3, 32, 32), n0=2, n=4)[0],
        model.predict_smoothed(torch.zeros(1, 3, 32, 32), n=4)[0],
    ):
        assert certificate.sigma == 33


def test_no_gradients_and_no_change_of_mode(robust_model, images):
    with torch.enable_grad():
        robust_model.certify(images[:1], **SMALL)
    assert not robust_model.training
    assert all(parameter.grad is None for parameter in robust_model.parameters())


def test_linear_classifier_in_closed_form(images, monkeypatch):
    """Units of the whole way: normalized images, sigma in 0..255, a radius in pixels of [0, 1]."""
    model = tiny_model(num_labels=2)
    std = torch.tensor(model.config.image_std)[:, None, None]
    weight = torch.randn(images.shape[1:], generator=seeded(3))
    # A plane in pixel space, at a known distance from the first image.
    offset = 0.2 - (weight * images[0] * std).sum() / weight.norm()

    def classify_noisy(noisy, *_):
        score = (weight * noisy * std).sum(dim=(1, 2, 3)) / weight.norm() + offset
        return None, torch.stack([-score, score], dim=1), None

    monkeypatch.setattr(model, "classify_noisy", classify_noisy)
    (certificate,) = model.certify(images[:1], sigma=31.875, n=20_000, generator=seeded())
    assert certificate.label == 1
    assert 0.96 * 0.2 < certificate.radius < 0.2


# What is refused.


@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        (None, "sigma=None.*Pass a number"),
        (0, "sigma=0.*Pass a number"),
        (0.0, "sigma=0"),
        ({"type": "constant", "value": 0}, "sigma=0"),
        (GammaSigma(25.0, 3.0), "random sigma Gamma.*sigma=75"),
        (UniformSigma(0, 30), "random sigma Uniform.*sigma=15"),
        ({"type": "uniform", "low": 10, "high": 10}, "random sigma"),
        (torch.tensor([10.0, 20.0]), "one sigma"),
        ([10.0, 20.0], "one sigma"),
        (-3, "at least 0.*-3"),
        (float("nan"), "nan"),
        ("off", "'config', got 'off'"),
    ],
)
@pytest.mark.parametrize("method", ["certify", "predict_smoothed"])
def test_sigmas_that_certify_nothing(robust_model, images, method, sigma, message):
    with pytest.raises(ValueError, match=message):
        getattr(robust_model, method)(images[:2], sigma)


@pytest.mark.parametrize("defense_sigma", [None, {"type": "gamma", "concentration": 25, "scale": 3}])
def test_sigmas_of_the_config_that_certify_nothing(defense_sigma):
    model = NIMForRobustImageClassification(tiny_config(defense_sigma=defense_sigma)).eval()
    with pytest.raises(ValueError, match="nothing can be certified"):
        model.certify(torch.zeros(1, 3, 32, 32))


def outputs_of_one_noisy_image(model, first, second):
    """Logits for two images whose noise makes them the same noisy image."""
    std = torch.tensor(model.config.image_std)[:, None, None]
    scale = SIGMA / 255 / std
    noise = torch.randn(first.shape, generator=seeded())
    with torch.no_grad():
        return [
            model(image[None], sigma=SIGMA, pixel_noise=added[None], output_draws=True)
            for image, added in ((first, noise), (second, noise + (first - second) / scale))
        ]


@pytest.mark.parametrize("overrides", [{}, {"norm_pix_loss": True, "patch_statistics": "noisy"}])
def test_the_prediction_depends_on_the_noisy_image_alone(images, overrides):
    model = tiny_model(**overrides)
    one, other = outputs_of_one_noisy_image(model, images[0], images[1])
    assert torch.allclose(one.noisy_pixel_values, other.noisy_pixel_values, atol=1e-5)
    assert torch.allclose(one.logits, other.logits, atol=1e-3)
    assert torch.allclose(one.denoised_pixel_values, other.denoised_pixel_values, atol=1e-4)
    assert model.certify(images[:1], **SMALL)[0].num_draws == 130


def test_patch_statistics_of_the_input_are_refused(images):
    model = tiny_model(norm_pix_loss=True, patch_statistics="input")
    one, other = outputs_of_one_noisy_image(model, images[0], images[1])
    assert torch.allclose(one.noisy_pixel_values, other.noisy_pixel_values, atol=1e-5)
    # The leak itself: what was behind the noise shows.
    assert (one.denoised_pixel_values - other.denoised_pixel_values).abs().max() > 0.5
    assert (one.logits - other.logits).abs().max() > 0.1
    for method in (model.certify, model.predict_smoothed):
        with pytest.raises(ValueError, match=r'patch_statistics = "noisy"'):
            method(images[:1], SIGMA)
    # What the message says helps.
    model.config.patch_statistics = "noisy"
    assert model.certify(images[:1], **SMALL)[0].num_draws == 130
    # Without normalized targets there are no statistics to leak.
    tiny_model(norm_pix_loss=False, patch_statistics="input").certify(images[:1], **SMALL)


def test_other_errors(images):
    model = tiny_model()
    for options, message in (
        ({"max_batch_size": 0}, "max_batch_size.*got 0"),
        ({"max_batch_size": 2.5}, "max_batch_size.*2.5"),
        ({"n": 0}, "n must be.*got 0"),
        ({"generator": [seeded()]}, "got 1 generators for a batch of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            model.certify(images[:2], SIGMA, **options)
    with pytest.raises(ValueError, match="a single image needs a first dimension"):
        model.certify(images[0], SIGMA)
    with pytest.raises(ValueError, match="32x32"):
        model.certify(torch.zeros(1, 3, 64, 64), SIGMA)
    assert model.certify(torch.zeros(1, 3, 64, 64), interpolate_pos_encoding=True, **SMALL)[0].num_draws == 130
    with pytest.raises(ValueError, match=r"train mode.*model.eval\(\)"):
        model.train().certify(images[:1], SIGMA)
    model.eval()
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match="float32"):
        model.certify(images[:1], **SMALL)


def test_half_precision(images):
    model = tiny_model().to(torch.bfloat16)
    (certificate,) = model.certify(images[10:11], generator=seeded(), **SMALL)
    (expected,) = tiny_model().certify(images[10:11], generator=seeded(), **SMALL)
    assert certificate.label == expected.label
    assert certificate.radius == pytest.approx(expected.radius, abs=0.02)


# Attacks.


def norm_of(tensor):
    return torch.linalg.vector_norm(tensor, dim=(1, 2, 3), keepdim=True)


def attack(model, images, labels, radii, steps=20, draws=8, restarts=3):
    """L2 PGD on the cross entropy averaged over draws (EOT), through noise, denoiser and classifier, without clipping.

    Radii are in pixels of [0, 1]. Returns, of all restarts, the images with the highest loss.
    """
    std = torch.tensor(model.config.image_std)[:, None, None]
    radii = radii[:, None, None, None]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        best, best_loss = images, torch.full((len(images),), -torch.inf)
        for _ in range(restarts):
            delta = torch.randn_like(images)
            delta = radii * delta / norm_of(delta)
            for _ in range(steps):
                delta.requires_grad_()
                logits = model((images + delta / std).repeat_interleave(draws, dim=0), sigma=SIGMA).logits
                loss = torch.nn.functional.cross_entropy(logits, labels.repeat_interleave(draws), reduction="none")
                loss = loss.unflatten(0, (-1, draws)).mean(dim=1)
                (gradient,) = torch.autograd.grad(loss.sum(), delta)
                delta = delta.detach()
                better = loss.detach() > best_loss
                best = torch.where(better[:, None, None, None], images + delta / std, best)
                best_loss = torch.where(better, loss.detach(), best_loss)
                delta = delta + 2.5 / steps * radii * gradient / norm_of(gradient).clamp(min=1e-12)
                delta = delta * (radii / norm_of(delta)).clamp(max=1)
    assert torch.all(norm_of((best - images) * std) <= radii * 1.0001)
    return best


def test_no_attack_changes_an_answer_inside_its_radius(robust_model, images):
    certificates = robust_model.certify(images, SIGMA, n=1000, generator=seeded())
    certified = [index for index, c in enumerate(certificates) if c.radius > 0.02]
    assert len(certified) >= 6
    images = images[certified]
    labels = torch.tensor([certificates[index].label for index in certified])
    radii = torch.tensor([certificates[index].radius for index in certified])
    before = [certificates[index].counts[certificates[index].label] / 1000 for index in certified]

    def votes(perturbed):
        predictions = robust_model.predict_smoothed(perturbed, SIGMA, n=600, generator=seeded(1))
        shares = [p.counts[label] / 600 for p, label in zip(predictions, labels.tolist())]
        changed = [p.label not in (label, ABSTAIN) for p, label in zip(predictions, labels.tolist())]
        return np.array(shares), np.array(changed)

    inside, changed = votes(attack(robust_model, images, labels, 0.999 * radii))
    assert not changed.any()
    # Half of the votes, less four standard errors of their share.
    assert inside.min() > 0.5 - 4 * 0.5 / 600**0.5
    # The attack is one: it takes votes away, and outside the radius it changes answers.
    assert np.mean(np.array(before) - inside) > 0.05
    _, changed = votes(attack(robust_model, images, labels, 5 * radii))
    assert changed.sum() >= 3


def test_example_of_the_docstring_runs():
    (test,) = doctest.DocTestFinder(recurse=False).find(NIMForRobustImageClassification.certify, "certify", globs={})
    test.examples[-1].want = test.examples[-1].want.replace("```\n", "")
    results = doctest.DocTestRunner().run(test)
    assert (results.failed, results.attempted) == (0, 6)
    assert NIMForRobustImageClassification.predict_smoothed.__doc__
