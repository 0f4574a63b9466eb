# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
from functools import partial

import pytest
import torch
from conftest import tiny_model
from toys import Linear, Noisy, NormBall, boundary_points, share_right

from transformers_nim.attacks import EOTAPGD, EOTPGD, FGSM, PGD, Ball, PixelClassifier, image_seeds
from transformers_nim.attacks.geometry import perturbation_norm


# With options for a single short run.
ITERATIVE = {
    "pgd": partial(EOTPGD, steps=40, losses=("ce",), restarts=1),
    "apgd": partial(EOTAPGD, steps=40, restarts=1),
}


@pytest.fixture(params=ITERATIVE)
def make(request):
    return ITERATIVE[request.param]


def linear_optimum(gap, pixels, norm, eps):
    """Return the maximum of a linear function in the ball and in [0, 1], by bisection on Lagrange's multiplier."""
    gap, pixels = gap.double(), pixels.double()
    if norm == "Linf":
        return (pixels + eps * gap.sign()).clamp(0, 1)
    low, high = torch.zeros(len(pixels), 1, 1, 1), torch.full((len(pixels), 1, 1, 1), 1e3)
    for _ in range(80):
        middle = (low + high) / 2
        short = perturbation_norm((pixels + middle * gap).clamp(0, 1) - pixels, "L2")[:, None, None, None] <= eps
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return (pixels + low * gap).clamp(0, 1)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("Linf", 0.6), ("L2", 0.3), ("L2", 2.0)])
def test_finds_the_optimum_of_a_linear_classifier(make, norm, eps):
    """The pixel range cuts all of these balls."""
    classifier = Linear()
    pixels, labels = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 2
    gap = classifier.gap(labels)
    best = linear_optimum(gap, pixels, norm, eps)
    assert ((best == 0) | (best == 1)).any()
    # Where many pixels are cut, steps along the gradient gain little, so PGD takes long ones here.
    options = {"step_size": eps} if make is ITERATIVE["pgd"] else {}
    adversarial = make(**options)(classifier, pixels, labels, norm=norm, eps=eps)
    Ball(norm, eps).check(pixels, adversarial)
    gain, possible = ((gap * (images - pixels)).sum(dim=(1, 2, 3)) for images in (adversarial, best))
    assert (gain >= 0.999 * possible).all(), (gain / possible).min()
    if norm == "Linf":
        torch.testing.assert_close(adversarial.double(), best, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_succeeds_exactly_beyond_the_known_radius(make, norm):
    classifier, shape = NormBall(norm, 0.3), (4, 1, 4, 4)
    # Points at a distance of 0.25 from the center are 0.05 from the boundary. For Linf the distance is that of one
    # pixel, and stays that of the same pixel in the whole ball.
    offset = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if norm == "Linf":
        offset = torch.eye(16)[:4].view(shape) * offset.sign()
    pixels = 0.5 + 0.25 * offset / perturbation_norm(offset, norm)[:, None, None, None]
    labels = torch.zeros(4, dtype=torch.long)
    for eps, right in ((0.0495, 1.0), (0.053, 0.0)):
        adversarial = make()(classifier, pixels, labels, norm=norm, eps=eps)
        assert share_right(classifier, adversarial, labels) == right


def test_averages_gradients_over_noise():
    """A single draw often flips the sign of the gradient; the mean over draws keeps it."""
    linear = Linear()

    def noisy(pixels):
        return linear(pixels) * (1 + 4 * torch.randn(len(pixels), 1))

    pixels, labels, eps = boundary_points(linear, 16, 0.0), torch.zeros(16, dtype=torch.long), 0.02
    gap, gain = linear.weight[1] - linear.weight[0], {}
    for draws in (1, 200):
        attack = EOTPGD(steps=10, num_draws=draws, batch_size=4000, losses=("ce",), restarts=1)
        adversarial = attack(noisy, pixels, labels, eps=eps)
        gain[draws] = ((adversarial - pixels) * gap).sum(dim=(1, 2, 3)).mean() / (eps * gap.abs().sum())
    assert gain[200] > gain[1] + 0.2


@pytest.mark.parametrize("num_draws", [1, 3])
@pytest.mark.parametrize("keep_best", [True, False])
def test_stays_in_the_ball_and_in_range(robust_model, num_draws, keep_best):
    torch.manual_seed(0)
    pixels = torch.rand(5, 3, 32, 32).round()  # many pixels at the border of the range
    labels = torch.tensor([0, 1, 2, 3, 4])
    attack = EOTPGD(steps=2, num_draws=num_draws, keep_best=keep_best, restarts=1, batch_size=6)
    for eps in (0.0, 8 / 255, 1.0):
        adversarial = attack(PixelClassifier(robust_model, sigma=30), pixels, labels, eps=eps)
        Ball("Linf", eps).check(pixels, adversarial)


def test_raises_the_loss_of_the_whole_defense(robust_model):
    torch.manual_seed(0)
    pixels = torch.rand(6, 3, 32, 32)
    classifier = PixelClassifier(robust_model, sigma=20, num_samples=16)
    labels = classifier(pixels).argmax(-1)
    attacked = PixelClassifier(robust_model, sigma=20)
    adversarial = EOTPGD(steps=15, num_draws=8, restarts=1)(attacked, pixels, labels, eps=16 / 255)
    noise = pixels + torch.empty_like(pixels).uniform_(-1, 1).sign() * 16 / 255

    def loss(images):
        return torch.nn.functional.cross_entropy(classifier(images.clamp(0, 1)), labels)

    assert loss(adversarial) > loss(noise) + 0.5


def test_repeatable_without_touching_anything():
    model = tiny_model()
    pixels, labels = torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 2])
    state, flags = torch.get_rng_state(), [parameter.requires_grad for parameter in model.parameters()]
    attack = EOTPGD(steps=2, num_draws=2, restarts=1)
    attacks = [attack(PixelClassifier(model, sigma=30), pixels, labels, eps=0.1, seed=seed) for seed in (4, 4, 5)]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(attacks[0], attacks[1])
    assert not torch.equal(attacks[0], attacks[2])
    assert not model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


def test_seeds_come_from_the_seed_and_the_position(robust_model):
    pixels, labels = torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 2])
    classifier, attack = PixelClassifier(robust_model, sigma=30), EOTPGD(steps=2, num_draws=2, restarts=1)
    by_seed = attack(classifier, pixels, labels, eps=0.1, seed=9)
    by_seeds = attack(classifier, pixels, labels, eps=0.1, seeds=image_seeds(9, 3))
    assert torch.equal(by_seed, by_seeds)
    left_out, zero = (attack(classifier, pixels, labels, eps=0.1, **seed) for seed in ({}, {"seed": 0}))
    assert torch.equal(left_out, zero)


def test_probabilities_as_labels(robust_model):
    """As from mixup; certain probabilities are the class."""
    pixels, labels = torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 2])
    classifier, certain = PixelClassifier(robust_model, sigma=30), torch.nn.functional.one_hot(labels, 5).float()
    options = {"steps": 3, "num_draws": 2, "restarts": 2, "losses": ("ce",)}
    mixed = (certain + certain.flip(0)) / 2
    results = [EOTPGD(**options)(classifier, pixels, of, eps=0.1) for of in (certain, mixed)]
    assert not torch.equal(*results)
    once = EOTPGD(**options | {"restarts": 1, "keep_best": False})
    torch.testing.assert_close(once(classifier, pixels, certain, eps=0.1), once(classifier, pixels, labels, eps=0.1))
    with pytest.raises(ValueError, match="take the loss 'ce'"):
        EOTPGD(steps=1)(classifier, pixels, certain, eps=0.1)


def test_single_step_attacks():
    classifier, pixels = Linear(), torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(4) % 2
    gap = classifier.gap(labels)
    for norm, eps in (("Linf", 0.1), ("L2", 0.3)):
        adversarial = FGSM()(classifier, pixels, labels, norm=norm, eps=eps)
        step = eps * (gap.sign() if norm == "Linf" else gap / perturbation_norm(gap, "L2")[:, None, None, None])
        torch.testing.assert_close(adversarial, (pixels + step).clamp(0, 1), atol=1e-5, rtol=0)
    # Steps are the paper's up to its eps, and grow with eps beyond.
    for eps, step_size in ((4 / 255, 2 / 255), (8 / 255, 2 / 255), (0.8, 0.2)):
        start = PGD(steps=1)(classifier, pixels, labels, eps=eps)
        end = PGD(steps=2)(classifier, pixels, labels, eps=eps)
        assert (end - start).abs().max() == pytest.approx(step_size, abs=1e-6)
        torch.testing.assert_close(
            PGD()(classifier, pixels, labels, eps=eps),
            PGD(step_size=step_size)(classifier, pixels, labels, eps=eps),
            atol=0,
            rtol=0,
        )


def test_the_last_iterate_is_judged_too():
    classifier, pixels, labels = Linear(), torch.full((4, 3, 4, 4), 0.5), torch.arange(4) % 2
    found = EOTPGD(steps=1, step_size=0.2, losses=("margin",), restarts=1)(classifier, pixels, labels, eps=0.1)
    torch.testing.assert_close(found, pixels + 0.1 * classifier.gap(labels).sign())


def test_steps_are_counted(robust_model):
    steps = []
    attack = EOTPGD(steps=3, num_draws=2, batch_size=4, restarts=1, losses=("ce",))
    classifier, pixels = PixelClassifier(robust_model, sigma=30), torch.rand(5, 3, 32, 32)
    attack(classifier, pixels, torch.arange(5), eps=0.0, on_step=lambda: steps.append(1))
    assert len(steps) == 9  # groups of two images


def test_wrong_options():
    """Refused when the attack is made."""
    for wrong, message in (
        ({"steps": 0}, "steps must be an int of at least 1, got 0"),
        ({"steps": None}, "steps must be an int of at least 1, got None"),
        ({"steps": 1.5}, "steps must be"),
        ({"num_draws": 0}, "num_draws must be"),
        ({"restarts": 0}, "restarts must be"),
        ({"step_size": 0}, "step_size must be positive"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"losses": ()}, "losses must be"),
        ({"losses": ("ce", "cw")}, "losses must be"),
    ):
        with pytest.raises(ValueError, match=message):
            EOTPGD(**wrong)
    assert EOTPGD(losses="ce") == EOTPGD(losses=["ce"])


def test_wrong_arguments(robust_model):
    classifier, pixels, labels = PixelClassifier(robust_model), torch.rand(1, 3, 32, 32), torch.tensor([0])
    for wrong, message in (
        ({"eps": -0.1}, "eps must be"),
        ({"eps": 8}, "eps must be at most 1 for Linf .* was 8/255 meant"),
        ({"norm": "L1"}, "norm must be"),
        ({"seeds": [1, 2]}, "2 seeds for 1 images"),
    ):
        with pytest.raises(ValueError, match=message):
            EOTPGD(steps=1)(classifier, pixels, labels, **{"eps": 0.1, **wrong})
    with pytest.raises(ValueError, match=r"pixels must lie in \[0, 1\], got 2.000 to 2.000"):
        EOTPGD()(classifier, torch.full_like(pixels, 2), labels, eps=0.1)


def test_more_draws_make_a_stronger_attack():
    """With noise from the generators, as in a defense."""
    linear = Linear(shape=(1, 4, 4))
    classifier = Noisy(lambda x: torch.tanh(3 * linear(x)) * 4, 0.5)
    pixels, labels = boundary_points(linear, 24, 0.5), torch.zeros(24, dtype=torch.long)
    right = {}
    for draws in (1, 20):
        attack = EOTPGD(steps=20, num_draws=draws, restarts=1, losses=("ce",), batch_size=480)
        right[draws] = share_right(classifier, attack(classifier, pixels, labels, eps=0.06), labels)
    assert right[20] < right[1] - 0.02
