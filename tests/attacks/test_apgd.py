# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Auto-PGD. Known optima are tested together with PGD, in test_pgd.py."""

import contextlib
import io
import itertools
import math

import pytest
import torch
from conftest import tiny_model
from toys import Linear, Noisy, share_right

from transformers_nim.attacks import (
    EOTAPGD,
    EOTAPGDCE,
    EOTAPGDDLR,
    EOTPGD,
    AutoAttack,
    Ball,
    PixelClassifier,
    TargetedAPGD,
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


class Blocks:
    """Logits of which each depends on a channel of its own, by another slope."""

    is_deterministic = True
    logits, slopes = torch.tensor([3.0, 2.0, 1.5, 1.0, 0.0]), torch.tensor([1.0, 0.5, 20.0, 1.0, 1.0])

    def __call__(self, pixels):
        return self.logits + self.slopes * (pixels.mean(dim=(2, 3)) - 0.5)


class TestTargeted:
    def test_reaches_the_class_that_is_nearest_and_not_the_most_likely(self):
        classifier, pixels, labels = Blocks(), torch.full((2, 5, 2, 2), 0.5), torch.zeros(2, dtype=torch.long)

        def margin(eps, **options):
            logits = classifier(TargetedAPGD(steps=30, **options)(classifier, pixels, labels, eps=eps))
            return (logits[:, 1:].amax(dim=1) - logits[:, 0]).tolist()

        # The margin to class 1 is 1 and falls by 1.5 per unit of eps; that to class 2 is 1.5 and falls by 21.
        for eps in (0.06, 0.07):
            assert margin(eps) == pytest.approx([21 * eps - 1.5] * 2, abs=1e-3)
            assert margin(eps, num_targets=1) == pytest.approx([1.5 * eps - 1] * 2, abs=1e-3)
        assert margin(0.08)[0] > 0

    @pytest.mark.parametrize(("norm", "dual", "eps"), [("Linf", 1, 0.02), ("L2", 2, 0.15)])
    def test_breaks_a_linear_model_where_that_is_possible(self, norm, dual, eps):
        """Far from the border of the pixels, a margin falls by at most eps times the dual norm of its slope."""
        linear = Linear(6)
        pixels = 0.4 + 0.2 * torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(1))
        logits = linear(pixels)
        labels = logits.argmax(dim=1)
        gaps = (linear.weight - linear.weight[labels][:, None]).flatten(2)
        margins = logits - logits.gather(1, labels[:, None]) + eps * torch.linalg.vector_norm(gaps, ord=dual, dim=2)
        best = margins.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
        found = linear(TargetedAPGD(steps=30)(linear, pixels, labels, norm=norm, eps=eps)).argmax(dim=1)
        # The loss is a ratio: its optimum is not quite that of the margin.
        clear = best.abs() > 0.1
        assert 0.1 < (best[clear] > 0).float().mean() < 0.9
        assert torch.equal((found != labels)[clear], best[clear] > 0)

    def test_targets_are_the_most_likely_other_classes(self):
        """With one target, only the second most likely class is reached for; all others take the rest."""
        linear, pixels = Linear(6), torch.full((1, 3, 4, 4), 0.5)
        labels = linear(pixels).argmax(dim=1)
        order = linear(pixels)[0].argsort(descending=True)
        attack = TargetedAPGD(num_targets=1, steps=5)
        found = attack(linear, pixels, labels, eps=0.2)
        assert linear(found).argmax(dim=1) == order[1]
        seen = []

        class Spy(TargetedAPGD):
            def _run(self, objective, *rest):
                seen.extend(objective.targets.unique().tolist())
                return super()._run(objective, *rest)

        Spy(steps=2, batch_size=1)(linear, pixels, labels, eps=1e-4)
        assert seen == order[1:].tolist()

    def test_draws_of_noise_and_what_it_refuses(self):
        pixels, labels = torch.rand(3, 3, 4, 4), torch.tensor([0, 1, 2])
        noisy, attack = Noisy(Linear(5), 0.1), TargetedAPGD(steps=3, num_draws=2, num_targets=2)
        first = attack(noisy, pixels, labels, eps=0.1)
        assert torch.equal(first, attack(noisy, pixels, labels, eps=0.1))
        assert 0.05 < (first - pixels).abs().max() <= 0.1 + 1e-6
        with pytest.raises(ValueError, match="at least 4 classes, the classifier has 3"):
            attack(Linear(3), pixels, labels, eps=0.1)
        with pytest.raises(ValueError, match="needs the one true class"):
            attack(Linear(5), pixels, torch.full((3, 5), 0.2), eps=0.1)
        with pytest.raises(ValueError, match="num_targets must be an int"):
            TargetedAPGD(num_targets=0)

    @pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.6 / 255), ("L2", 0.08)])
    def test_agrees_with_the_part_of_autoattack(self, problem, norm, eps):
        classifier, pixels, labels = problem
        pytest.importorskip("pyautoattack")
        attacks = TargetedAPGD(steps=12), AutoAttack(steps=12, parts=("apgd-t",))
        ours, theirs = (attack(classifier, pixels, labels, norm=norm, eps=eps) for attack in attacks)
        left = [share_right(classifier, images, labels, 1) for images in (ours, theirs)]
        assert 0.1 < left[0] < 0.9, left
        assert abs(left[0] - left[1]) <= 2 / len(pixels), left
