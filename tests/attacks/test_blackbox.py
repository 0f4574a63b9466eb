# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from toys import Linear, Masked, Noisy, boundary_points, share_right

from transformers_nim.attacks import EOTPGD, PGD, Ball, NoAttack, Square, Transfer, UniformNoise
from transformers_nim.attacks.blackbox import square_side
from transformers_nim.attacks.geometry import perturbation_norm


@pytest.fixture
def linear():
    return Linear(shape=(1, 8, 8))


@pytest.fixture
def labels():
    return torch.zeros(12, dtype=torch.long)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.05), ("L2", 0.3)])
def test_square_beats_a_gradient_mask_that_stops_pgd(linear, labels, norm, eps):
    pixels = boundary_points(linear, 12, 1.2)
    masked, pgd = Masked(linear), EOTPGD(steps=10)
    assert share_right(masked, pixels, labels, 1) == 1
    assert share_right(linear, pgd(linear, pixels, labels, norm=norm, eps=eps), labels, 1) == 0
    assert share_right(masked, pgd(masked, pixels, labels, norm=norm, eps=eps), labels, 1) > 0.7
    found = Square(num_queries=400)(masked, pixels, labels, norm=norm, eps=eps)
    Ball(norm, eps).check(pixels, found)
    assert share_right(masked, found, labels, 1) < 0.2


def test_square_needs_no_gradient(linear, labels):
    pixels = boundary_points(linear, 12, 1.2)

    class NoGradient(Linear):
        @torch.inference_mode()
        def __call__(self, images):
            return super().__call__(images)

    found = Square(num_queries=200)(NoGradient(shape=(1, 8, 8)), pixels, labels, eps=0.05)
    assert share_right(linear, found, labels, 1) < 0.2


def test_square_averages_over_noise(linear, labels):
    """The noise hides the effect of a square, unless proposals are compared on several draws."""
    classifier = Noisy(linear, 0.2)
    pixels = boundary_points(linear, 12, 0.6)
    right = share_right(classifier, pixels, labels)
    found = Square(num_queries=4000, num_draws=5)(classifier, pixels, labels, eps=0.05)
    noise = UniformNoise()(classifier, pixels, labels, eps=0.05)
    assert share_right(classifier, found, labels) < right - 0.2
    assert abs(share_right(classifier, noise, labels) - right) < 0.1


def test_a_lucky_draw_does_not_stop_square(linear, labels):
    """One draw in two is wrong from the start, and the search goes on."""
    steps = []
    classifier = Noisy(linear, 5.0)
    attack, pixels = Square(num_queries=40, num_draws=1), boundary_points(linear, 12, 0.1)
    attack(classifier, pixels, labels, eps=0.05, on_step=lambda: steps.append(1))
    assert len(steps) == 20  # two queries each


@pytest.mark.parametrize(("num_queries", "num_draws"), [(40, 5), (49, 5), (10, 1)])
def test_queries_are_counted(linear, labels, num_queries, num_draws):
    classifier = Noisy(linear, 0.2)
    attack = Square(num_queries=num_queries, num_draws=num_draws, batch_size=4 * num_draws)
    attack(classifier, boundary_points(linear, 12, 0.6), labels, eps=0.05)
    assert num_queries - 2 * num_draws < classifier.queries / 12 <= num_queries


def test_queries_of_a_deterministic_classifier():
    asked = []

    class Counting(Linear):
        def __call__(self, pixels):
            asked.append(len(pixels))
            return 0 * super().__call__(pixels) + torch.tensor([1.0, 0.0])

    attack = Square(num_queries=30, batch_size=4)
    attack(Counting(shape=(1, 8, 8)), torch.rand(4, 1, 8, 8), torch.zeros(4).long(), eps=0.1)
    assert sum(asked) == 4 * 30


def test_sides_of_squares():
    """The first covers 80 % of the image; with 10,000 proposals shares are halved where the paper halves them."""
    assert square_side(0, 10_000, 0.8, (224, 224)) == round((0.8 * 224 * 224) ** 0.5)
    sides = [square_side(proposal, 10_000, 0.8, (1000, 1000)) for proposal in (10, 11, 51, 501, 9999)]
    shares = [(side / 1000) ** 2 / 0.8 for side in sides]
    assert shares == pytest.approx([1, 1 / 2, 1 / 4, 1 / 16, 1 / 512], rel=0.03)
    assert [square_side(proposal, 100, 0.8, (1000, 1000)) for proposal in (0, 1)] == [894, 447]
    assert square_side(99, 100, 0.001, (8, 8)) == 1
    assert square_side(0, 100, 1.0, (4, 16)) == 4


def test_square_changes_squares(linear, labels):
    """Pixels of the final Linf perturbation are at plus or minus eps."""
    pixels = torch.full((12, 1, 8, 8), 0.5)
    found = Square(num_queries=30)(linear, pixels, labels, eps=0.05)
    torch.testing.assert_close((found - pixels).abs(), torch.full_like(pixels, 0.05))


def test_transfer(linear, labels):
    pixels = boundary_points(linear, 12, 1.0)

    class Unasked:
        def __call__(self, images):
            raise AssertionError("the attacker does not know this model")

    found = Transfer(source=linear, attack="pgd", options={"steps": 20})(Unasked(), pixels, labels, eps=0.05, seed=3)
    assert torch.equal(found, PGD(steps=20)(linear, pixels, labels, eps=0.05, seed=3))
    with pytest.raises(ValueError, match="has no option"):
        Transfer(source=linear, options={"queries": 3})
    with pytest.raises(ValueError, match="TorchattacksPGD is an attack for Linf alone, got 'L2'"):
        Transfer(source=linear, attack="torchattacks_pgd")(Unasked(), pixels, labels, norm="L2", eps=0.05)


def test_noise_fills_the_ball(linear):
    pixels = torch.full((300, 1, 8, 8), 0.5)
    for norm in ("Linf", "L2"):
        found = UniformNoise()(linear, pixels, torch.zeros(300).long(), norm=norm, eps=0.2)
        size = perturbation_norm(found - pixels, norm)
        assert size.max() <= 0.2 + 1e-6
        assert size.min() > 0.15
    clean = NoAttack()(linear, pixels, torch.zeros(300).long(), eps=0.2)
    assert torch.equal(clean, pixels)
    assert clean is not pixels


def test_wrong_arguments(linear, labels):
    pixels = torch.rand(12, 1, 8, 8)
    for wrong, message in (
        ({"num_queries": 0}, "num_queries must be an int"),
        ({"num_draws": 0}, "num_draws must be an int"),
        ({"initial_share": 0.0}, "initial_share must be"),
        ({"initial_share": 1.5}, "initial_share must be"),
    ):
        with pytest.raises(ValueError, match=message):
            Square(**wrong)
    with pytest.raises(ValueError, match="num_queries must be at least 2 for one proposal"):
        Square(num_queries=1)(linear, pixels, labels, eps=0.1)
    with pytest.raises(ValueError, match="num_queries must be at least 40 for one proposal, got 39"):
        Square(num_queries=39)(Noisy(linear, 0.1), pixels, labels, eps=0.1)
    with pytest.raises(ValueError, match="the one true class"):
        Square()(linear, pixels, torch.rand(12, 2), eps=0.1)
