# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import itertools
import re

import pytest
import torch

from transformers_nim.attacks import FGSM, Ball, geometry, image_generators
from transformers_nim.attacks.geometry import TOLERANCE, check_images, perturbation_norm
from transformers_nim.commands import finetune
from transformers_nim.training.attack import TrainingAttack


@pytest.mark.parametrize(
    ("norm", "eps"), [*itertools.product(["Linf", "L2"], [0.0, 0.03, 0.5]), ("Linf", 1.0), ("L2", 2.0)]
)
@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (2, 1, 1, 1)])
def test_projection_is_the_nearest_point(norm, eps, shape):
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(shape, generator=generator)
    clean[0] = clean[0].round()  # at the border of the range
    outside = clean + torch.randn(shape, generator=generator)
    ball = Ball(norm, eps)
    nearest = ball.project(clean, outside)
    ball.check(clean, nearest)
    distance = perturbation_norm(outside - nearest, "L2")
    for _ in range(200):
        # All other points of the ball are further away. Many of those tried are close to the nearest.
        other = nearest + 10 ** -(4 * torch.rand(1, generator=generator)) * torch.randn(shape, generator=generator)
        other = clean + (other - clean) * (eps / perturbation_norm(other - clean, norm).clamp(min=eps, max=None) if eps
                                           else torch.zeros(len(clean)))[:, None, None, None]  # fmt: skip
        assert (perturbation_norm(outside - other.clamp(0, 1), "L2") >= distance - 1e-5).all()
    # Points of the ball stay where they are.
    torch.testing.assert_close(ball.project(clean, nearest), nearest, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_steepest_direction(norm):
    gradient = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    gradient[1] *= 1e-30  # squares of these are zero in float32
    gradient[2] = 0
    direction = Ball(norm, 1.0).steepest(gradient)
    assert torch.isfinite(direction).all()
    torch.testing.assert_close(perturbation_norm(direction, norm), torch.tensor([1.0, 1.0, 0.0]))
    dual = perturbation_norm(gradient[:1], "L2") if norm == "L2" else gradient[:1].abs().sum()
    torch.testing.assert_close((direction * gradient)[:1].sum(), dual.squeeze())


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_random_points(norm):
    clean = torch.full((400, 1, 2, 2), 0.5)
    points = Ball(norm, 0.3).random_point(clean, image_generators(range(400), "start"))
    Ball(norm, 0.3).check(clean, points)
    # In a ball of d dimensions the radius is distributed as U^(1/d).
    share = perturbation_norm(points - clean, norm) / 0.3
    torch.testing.assert_close((share**4).mean(), torch.tensor(0.5), atol=0.06, rtol=0)
    assert abs((points - clean).mean()) < 0.02
    again = Ball(norm, 0.3).random_point(clean[:2], image_generators([1, 0], "start"))
    assert torch.equal(again, points[[1, 0]])


def test_bounds_are_checked():
    clean = torch.full((2, 1, 2, 2), 0.5)
    near = clean + 0.1
    Ball("Linf", 0.1).check(clean, near)
    Ball("L2", 0.2).check(clean, near)
    for ball, images in (
        (Ball("Linf", 0.1 - 2 * TOLERANCE), near),
        (Ball("L2", 0.2 - 2 * TOLERANCE), near),
        (Ball("Linf", 1.0), clean + 0.6),
        (Ball("Linf", 1.0), clean - 0.6),
        (Ball("Linf", 1.0), clean * torch.nan),
    ):
        with pytest.raises(ValueError, match="the attack left its bounds"):
            ball.check(clean, images)
    with pytest.raises(ValueError, match="turned images of shape"):
        Ball("Linf", 1.0).check(clean, clean[:1])


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("eps", [0.05, 0.5, 10.0])
def test_projections_are_not_refused_for_their_rounding(size, eps):
    ball, generator = Ball("L2", eps), torch.Generator().manual_seed(0)
    for trial in range(12):
        clean = torch.rand(1, 3, size, size, generator=generator)
        if trial % 3 == 0:
            clean[:] = 0.3 + 0.05 * trial
        outside = clean + 10 ** -(trial % 4) * torch.randn(clean.shape, generator=generator)
        if trial % 2:
            outside = clean + 10 * ball.eps * ball.steepest(torch.ones_like(clean))
        nearest = ball.project(clean, outside)
        ball.check(clean, nearest)
        exact = (nearest.double() - clean.double()).norm().item()
        assert exact <= eps + 2**-24 * clean.numel() ** 0.5
        assert perturbation_norm(nearest - clean, "L2").item() == pytest.approx(exact, rel=2e-6)


def test_rounding_of_all_pixels_in_one_direction_is_no_violation():
    """A flat picture and a flat perturbation: all pixels are rounded alike, and in L2 that adds up."""
    ball, distances = Ball("L2", 3.0), []
    for level in torch.linspace(0.6, 0.9, 31):
        clean = torch.full((1, 3, 224, 224), float(level))
        images = clean + ball.eps / clean.numel() ** 0.5
        ball.check(clean, images)
        distances.append(float(perturbation_norm(images - clean, "L2")))
    assert max(distances) > ball.eps + TOLERANCE
    with pytest.raises(ValueError, match="the attack left its bounds"):
        ball.check(clean, clean + 1.0001 * ball.eps / clean.numel() ** 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("L1", 0.1), "norm must be one of"),
        (("L2", -0.1), "eps must be"),
        (("L2", float("nan")), "eps must be"),
        (("Linf", 8), r"eps must be at most 1 for Linf \(in pixels of \[0, 1\]\), got 8; was 8/255 meant\?"),
    ],
)
def test_wrong_balls(arguments, message):
    with pytest.raises(ValueError, match=message):
        Ball(*arguments)


@pytest.mark.parametrize(
    ("norm", "eps", "said"),
    [
        ("Linf", 8.0, None),
        ("Linf", 0.5, None),
        ("Linf", 0.031, "Linf eps 0.031/255 is less .*if 0.031 was meant for pixels in .0, 1., that is 7.9.?/255"),
        ("L2", 128.0, None),
        ("L2", 0.5, "that is 128/255|that is 127"),
        ("L2", 128.0 * 255, "L2 eps 128 for pixels in .* larger than any attack allows; was 128/255 meant"),
    ],
)
def test_implausible_units_are_warned_of(norm, eps, said, monkeypatch):
    told = []
    monkeypatch.setattr(geometry.logger, "warning_once", told.append)
    geometry.warn_of_eps(norm, eps)
    assert len(told) == (said is not None)
    assert said is None or re.search(said, told[0])


def test_attacks_and_their_training_warn_of_units(monkeypatch):
    told = []
    monkeypatch.setattr(geometry.logger, "warning_once", told.append)
    pixels, labels = torch.rand(1, 3, 4, 4), torch.tensor([0])
    FGSM()(lambda images: images.flatten(1)[:, :2], pixels, labels, eps=128.0, norm="L2")
    assert len(told) == 1
    # The whole ball is what an unbounded attack is given.
    FGSM()(lambda images: images.flatten(1)[:, :2], pixels, labels, eps=48**0.5, norm="L2")
    assert len(told) == 1
    TrainingAttack(eps=0.031 / 255, steps=1)
    assert "0.031/255" in told[1]
    for norm, eps in geometry.DEFAULT_EPS.items():
        args = finetune.parse_arguments(["--output_dir", "outputs", "--adversarial_norm", norm])
        assert args.adversarial_eps == eps


def test_wrong_images():
    pixels, labels = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    for wrong, message in (
        ((pixels[0], labels, [0, 1]), "pixels must be floats of shape"),
        (((pixels * 255).byte(), labels, [0, 1]), "pixels must be floats of shape"),
        ((pixels + 1, labels, [0, 1]), r"pixels must lie in \[0, 1\]"),
        ((pixels.round() - 2e-6, labels, [0, 1]), r"pixels must lie in \[0, 1\]"),
        ((pixels.half().round() + 0.01, labels, [0, 1]), r"pixels must lie in \[0, 1\]"),
        ((pixels * torch.nan, labels, [0, 1]), r"pixels must lie in \[0, 1\]"),
        ((pixels, labels[:1], [0, 1]), "labels must be class numbers"),
        ((pixels, labels.float(), [0, 1]), "labels must be one class"),
        ((pixels, labels, [0]), "got 1 seeds for 2 images"),
    ):
        with pytest.raises(ValueError, match=message):
            check_images(*wrong)
