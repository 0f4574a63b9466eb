# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Auto-PGD. Known optima are tested together with PGD, in test_pgd.py."""

import contextlib
import io
import itertools
import math

import pytest
import torch
from conftest import tiny_model
from toys import Linear, share_right

from transformers_nim.attacks import (
    EOTAPGD,
    EOTAPGDCE,
    EOTAPGDDLR,
    EOTPGD,
    AutoAttack,
    Ball,
    PixelClassifier,
    external,
    image_generators,
)
from transformers_nim.attacks.apgd import checkpoints
from transformers_nim.attacks.losses import Objective
from transformers_nim.robustness import wilson_interval


def test_checkpoints():
    """For 100 steps as in the paper's code, with periods of 22, 19, 16, 13, 10, 7, 6 and 6."""
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1]
    assert checkpoints(20)[:3] == [5, 9, 12]


def algorithm_one(loss, slope, start, low, high, eps, steps):
    """Return the points that algorithm 1 of the paper visits on a function of one number; a second implementation."""
    ends, eta, visited = checkpoints(steps), 2 * eps, [start]
    x, g, f = start, slope(start), loss(start)
    best = (f, x, g)
    values, halved_last, best_last, begun, before = [f], True, f, 0, start

    def cut(value):
        return min(max(value, low), high)

    for step in range(1, steps + 1):
        z = cut(x + eta * ((g > 0) - (g < 0)))
        new = z if step == 1 else cut(x + 0.75 * (z - x) + 0.25 * (x - before))
        before, x = x, new
        g, f = slope(x), loss(x)
        visited.append(x)
        values.append(f)
        best = max(best, (f, x, g), key=lambda point: point[0])
        if step in ends:
            rises = sum(later > earlier for earlier, later in itertools.pairwise(values))
            halve = rises < 0.75 * (step - begun) or (not halved_last and best[0] <= best_last)
            if halve:
                eta /= 2
                f, x, g = best
            halved_last, best_last, begun, values = halve, best[0], step, [f]
    return visited


def test_visits_the_points_of_the_papers_algorithm():
    """Momentum, halved steps and the return to the best point, on a curve whose top lies in the ball."""
    visited, eps, steps = [], 0.2, 40

    class Curve:
        is_deterministic = True

        def __call__(self, pixels):
            value = pixels[:, 0, 0, 0]
            visited.append(float(value[0].detach()))
            margin = torch.sin(9 * value) + value
            return torch.stack([-margin / 2, margin / 2], dim=1)

    clean, objective = torch.full((1, 1, 1, 1), 0.15, dtype=torch.float64), Objective(Curve(), "margin", 1)
    generators = image_generators([0], "start")
    EOTAPGD(steps=steps)._run(objective, Ball("Linf", eps), list, clean, torch.tensor([0]), generators)
    expected = algorithm_one(
        lambda x: math.sin(9 * x) + x, lambda x: 9 * math.cos(9 * x) + 1, visited[0], 0.0, 0.15 + eps, eps, steps
    )
    assert visited == pytest.approx(expected, abs=1e-6)
    assert len({round(value, 6) for value in visited}) > 15


@pytest.fixture(scope="module")
def problem():
    """Return a defense with fixed noise, images and their predicted labels."""
    classifier = PixelClassifier(tiny_model(), sigma=10, fixed_noise=True)
    pixels = torch.rand(32, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear")
    with torch.no_grad():
        return classifier, pixels, classifier(pixels).argmax(dim=-1)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.6 / 255), ("L2", 0.06)])
def test_agrees_with_the_official_attack(norm, eps, problem):
    """On a deterministic model both leave the same accuracy, within the interval."""
    classifier, pixels, labels = problem
    pytest.importorskip("pyautoattack")
    attacks = EOTAPGD(steps=12, restarts=1, losses=("ce", "dlr")), AutoAttack(steps=12, parts=("apgd-ce", "apgd-dlr"))
    ours, theirs = (attack(classifier, pixels, labels, norm=norm, eps=eps) for attack in attacks)
    left = [share_right(classifier, images, labels, 1) for images in (ours, theirs)]
    assert 0.1 < left[0] < 0.9, left
    low, high = wilson_interval(left[1], len(pixels))
    assert low <= left[0] <= high, left
    assert left[0] <= left[1] + 2 / len(pixels), left


def test_agrees_with_torchattacks(problem):
    torchattacks = pytest.importorskip("torchattacks")
    classifier, pixels, labels = problem
    eps = 0.6 / 255
    ours = EOTAPGDCE(steps=12, restarts=1)(classifier, pixels, labels, eps=eps)
    with contextlib.redirect_stdout(io.StringIO()), external._contained(pixels.device):
        theirs = torchattacks.APGD(external._Logits(classifier), eps=eps, steps=12)(pixels, labels)
    left = [share_right(classifier, images, labels, 1) for images in (ours, theirs)]
    assert left[0] <= left[1] + 2 / len(pixels), left
    assert 0.1 < left[0] < 0.9, left


def test_step_sizes_beat_constant_steps_of_the_same_start(problem):
    """Adapted step sizes raise the margin further than as many steps of the first size."""
    classifier, pixels, labels = problem
    eps, options = 0.6 / 255, {"losses": ("margin",), "steps": 12, "restarts": 1}
    halved = EOTAPGD(**options)(classifier, pixels, labels, eps=eps)
    constant = EOTPGD(**options, step_size=2 * eps)(classifier, pixels, labels, eps=eps)

    def margin(images):
        with torch.no_grad():
            logits = classifier(images)
        others = logits.masked_fill(torch.nn.functional.one_hot(labels, 5).bool(), -torch.inf).amax(dim=-1)
        return (others - logits.gather(1, labels[:, None])[:, 0]).mean()

    assert margin(halved) > margin(constant)


class OneDrawDecides(Objective):
    """Averages gradients, but judges a point by its last draw, as other implementations of APGD do."""

    def gradient(self, images, labels, generators):
        _, logits, gradient = super().gradient(images, labels, generators)
        last = logits[:, -1:]
        other = 1 - labels  # two classes
        loss = last.gather(-1, other[:, None, None]) - last.gather(-1, labels[:, None, None])
        return loss[:, 0, 0], last, gradient


class Peak:
    """Wrong most often at one brightness; noise hides how often."""

    def draw_logits(self, pixels, num_draws, generators):
        noise = torch.stack([torch.randn(num_draws, generator=generator) for generator in generators])
        excess = pixels.mean(dim=(1, 2, 3)) - 0.53
        margin = (1 - (excess / 0.02) ** 2)[:, None] + 3 * noise
        return torch.stack([-margin / 2, margin / 2], dim=-1)


def test_averaged_acceptance_beats_a_single_draws():
    """Measured on draws that neither has seen: by a single draw any point may look best."""
    classifier, pixels, labels = Peak(), torch.full((64, 1, 2, 2), 0.5), torch.zeros(64, dtype=torch.long)
    right = {}
    for cls in (Objective, OneDrawDecides):
        objective, generators = cls(classifier, "margin", 20), image_generators(range(64), "attack")
        (found,) = EOTAPGD(steps=30)._run(objective, Ball("Linf", 0.1), list, pixels, labels, generators)
        right[cls] = share_right(classifier, found, labels)
    assert right[Objective] < right[OneDrawDecides] - 0.02, right


def test_classes_that_the_dlr_loss_needs():
    attack, pixels, labels = EOTAPGDDLR(steps=2), torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="at least 3 classes; the classifier has 2"):
        attack(Linear(2), pixels, labels, eps=0.1)
    assert attack(Linear(3), pixels, labels, eps=0.1).shape == pixels.shape
