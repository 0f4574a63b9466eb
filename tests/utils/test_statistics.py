# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import math

import numpy as np
import pytest

from transformers_nim.utils.statistics import (
    Accuracy,
    certified_accuracy,
    mean_accuracy,
    paired_difference,
    unpaired_difference,
    wilson_interval,
)


def test_wilson_interval_of_a_textbook_case():
    """8 of 10: 0.490 to 0.943 (e.g. statsmodels.stats.proportion.proportion_confint(8, 10, method="wilson"))."""
    low, high = wilson_interval(0.8, 10)
    assert low == pytest.approx(0.4902, abs=1e-4)
    assert high == pytest.approx(0.9433, abs=1e-4)
    low, high = wilson_interval(1.0, 512)
    assert low > 0.99
    assert high == pytest.approx(1)


def test_perfect_and_hopeless_accuracies_are_not_certain():
    for value in (0, 1):
        accuracy = mean_accuracy(np.full((50, 8), value, dtype=bool))
        assert accuracy.mean == value
        assert accuracy.high - accuracy.low > 0.05


@pytest.mark.parametrize("num_draws", [1, 11])
def test_intervals_do_not_jump_near_the_ends(num_draws):
    """None of 16 images is right, then one draw of one image, and so on."""
    correct = np.zeros((16, num_draws), dtype=bool)
    assert str(mean_accuracy(correct)) == "0.0 [0.0, 19.4]"
    before = mean_accuracy(correct)
    for index in range(correct.size):
        correct.flat[index] = True
        after = mean_accuracy(correct)
        assert before.low <= after.low <= after.mean <= after.high
        assert before.high <= after.high <= before.high + 0.1
        low, high = wilson_interval(after.mean, 16)
        # Less than two images are right, or wrong: their spread says nothing.
        if not 2 / 16 < after.mean < 14 / 16:
            assert (after.low, after.high) == pytest.approx((low, high))
        before = after


@pytest.mark.parametrize(("num_images", "num_draws"), [(64, 2), (64, 11), (128, 11)])
def test_a_right_answer_more_never_lowers_an_interval(num_images, num_draws):
    correct, rng = np.zeros((num_images, num_draws), dtype=bool), np.random.default_rng(0)
    by_image = np.arange(correct.size)
    for order in (by_image, by_image.reshape(correct.shape).T.ravel(), rng.permutation(by_image)):
        correct[:] = False
        before = mean_accuracy(correct)
        for index in order:
            correct.flat[index] = True
            after = mean_accuracy(correct)
            assert before.low <= after.low
            assert before.high <= after.high
            before = after


def probabilities(share, spread, shape, rng):
    """Draw how often each image is right: always the same (spread 0) up to always or never (spread 1)."""
    if share in (0, 1) or spread == 0:
        return np.full(shape, float(share))
    if spread == 1:
        return (rng.random(shape) < share).astype(float)
    strength = 1 / spread - 1
    return rng.beta(share * strength, (1 - share) * strength, shape)


def draws(chances, num_draws, rng):
    return rng.random((*chances.shape, num_draws)) < chances[..., None]


SHARES = [0, 0.01, 0.02, 0.05, 0.5, 0.95, 0.99, 1]


@pytest.mark.parametrize("num_images", [64, 128])
@pytest.mark.parametrize("share", SHARES)
def test_intervals_of_one_draw_cover_the_truth(num_images, share):
    """With the exact probability of each number of right images."""
    coverage = 0.0
    for right in range(num_images + 1):
        accuracy = mean_accuracy((np.arange(num_images) < right)[:, None])
        if accuracy.low <= share <= accuracy.high:
            coverage += math.comb(num_images, right) * share**right * (1 - share) ** (num_images - right)
    assert coverage >= 0.94


@pytest.mark.slow
@pytest.mark.parametrize("num_images", [64, 128])
@pytest.mark.parametrize("spread", [0, 0.3, 0.8, 1])
def test_intervals_cover_the_truth(num_images, spread):
    """Images of different difficulty, 11 draws each, whose answers are as correlated as `spread` says."""
    rng, widths, num = np.random.default_rng(0), {}, 2000
    for share in SHARES:
        correct = draws(probabilities(share, spread, (num, num_images), rng), 11, rng)
        found = [mean_accuracy(one) for one in correct]
        covered = np.mean([one.low - 1e-12 <= share <= one.high + 1e-12 for one in found])
        # Less two standard errors of the simulation.
        assert covered >= 0.94 - 2 * (0.06 * 0.94 / num) ** 0.5, share
        of_images = [np.subtract(*wilson_interval(one.mean, num_images)) for one in found]
        widths[share] = np.mean([one.low - one.high for one in found]) / np.mean(of_images)
        assert widths[share] <= 1 + 1e-9
    # In the middle more draws tell more.
    assert widths[0.5] < {0: 0.6, 0.3: 0.75, 0.8: 0.95, 1: 1.01}[spread]


def test_no_images():
    with pytest.raises(ValueError, match="at least one image"):
        mean_accuracy(np.zeros((0, 3), dtype=bool))


def test_pairs_cancel_what_images_share():
    """Half of the images are hard for both: their spread is not the difference's."""
    easy = np.arange(100)[:, None] % 2 == 0
    a = np.repeat(easy, 4, axis=1)
    b = a.copy()
    b[:10] = False  # five of 100 images less
    paired, unpaired = paired_difference(a, b), unpaired_difference(a, b)
    assert paired.mean == unpaired.mean == pytest.approx(0.05)
    # A share of 0.05 among 100 images has a standard error of 0.0218.
    assert paired.low == pytest.approx(0.05 - 1.96 * 0.0218, abs=0.005)
    # Score intervals of small shares reach further to the middle.
    assert paired.high == pytest.approx(0.05 + 1.96 * 0.0218, abs=0.02)
    assert not paired.includes_zero
    assert unpaired.includes_zero
    # Two accuracies of 0.50 and 0.45 with standard errors of 0.05: sqrt(2) * 1.96 * 0.05.
    assert unpaired.high - unpaired.mean == pytest.approx(0.1386, abs=0.02)
    assert paired_difference(b, a).mean == pytest.approx(-0.05)


def test_numbers_of_draws_may_differ():
    difference = paired_difference(np.ones((200, 1), bool), np.array([[True, False, True, False]] * 200))
    assert difference.mean == pytest.approx(0.5)
    # 800 draws of a coin have a standard error of 0.0177; that of 200 images answered once is 0.0354.
    assert 2 * 1.96 * 0.0177 < difference.high - difference.low < 0.6 * 2 * 1.96 * 0.0354


@pytest.mark.parametrize(("a", "b", "mean"), [(1, 1, 0), (0, 0, 0), (1, 0, 1), (0, 1, -1)])
def test_differences_without_variation_are_not_certain(a, b, mean):
    difference = paired_difference(np.full((20, 3), bool(a)), np.full((20, 5), bool(b)))
    # Of none that differ the interval is Wilson's, to both sides; of all, what solves the equation of Tango.
    _, half = wilson_interval(0.0, 20)
    low, high = {0: (-half, half), 1: (1 - 2 * half, 1), -1: (-1, 2 * half - 1)}[mean]
    assert difference.mean == mean
    assert (difference.low, difference.high) == pytest.approx((low, high))
    assert difference.includes_zero == (mean == 0)


def test_pairs_need_the_same_images():
    with pytest.raises(ValueError, match="got 3 and 4"):
        paired_difference(np.zeros((3, 1), bool), np.zeros((4, 1), bool))
    with pytest.raises(ValueError, match="at least one"):
        paired_difference(np.zeros((0, 1), bool), np.zeros((0, 1), bool))
    assert str(paired_difference(np.ones((4, 1), bool), np.zeros((4, 1), bool))).startswith("+100.0 [+2.0")


def test_paired_interval_of_published_cases():
    """Tables of Tango 1998 and Newcombe 1998: 36 of 50 right in both, 12 and 2 in one; then none in one."""
    a, b = np.zeros((50, 1), bool), np.zeros((50, 1), bool)
    a[:48], b[:36], b[48:] = True, True, True
    difference = paired_difference(a, b)
    assert (difference.low, difference.high) == pytest.approx((0.0611, 0.3447), abs=5e-5)
    mirrored = paired_difference(b, a)
    assert (mirrored.low, mirrored.high) == pytest.approx((-difference.high, -difference.low))
    difference = paired_difference(a, a)
    assert (difference.low, difference.high) == pytest.approx((-0.0713, 0.0713), abs=5e-5)


@pytest.mark.parametrize("num_draws", [1, 11])
def test_paired_intervals_do_not_jump_near_their_ends(num_draws):
    a, b = np.zeros((16, num_draws), dtype=bool), np.zeros((16, 2), dtype=bool)
    before = paired_difference(a, b)
    assert str(before) == "+0.0 [-19.4, +19.4]"
    for index in range(a.size):
        a.flat[index] = True
        after = paired_difference(a, b)
        # Where the spread begins to count, an end may turn back by a trifle.
        assert after.low >= before.low - 0.001
        assert before.high - 0.001 <= after.high <= before.high + 0.1
        before = after
    assert str(after) == "+100.0 [+61.3, +100.0]"


@pytest.mark.slow
@pytest.mark.parametrize("num_images", [64, 128])
@pytest.mark.parametrize("spread", [0, 0.3, 0.8, 1])
def test_paired_intervals_cover_the_truth(num_images, spread):
    """An attack leaves `a` right in a share of draws, and `b` in a share of these; images differ in both."""
    rng, num = np.random.default_rng(1), 500
    for share in (0.01, 0.05, 0.5, 0.99, 1):
        for kept in (0, 0.5, 1):
            for num_draws in ((1, 1), (1, 11), (11, 11)):
                chances = probabilities(share, spread, (num, num_images), rng)
                left = chances * probabilities(kept, spread, (num, num_images), rng)
                pairs = zip(draws(chances, num_draws[0], rng), draws(left, num_draws[1], rng))
                found = [paired_difference(a, b) for a, b in pairs]
                truth = share * (1 - kept)
                covered = np.mean([one.low - 1e-9 <= truth <= one.high + 1e-9 for one in found])
                assert covered >= 0.94 - 3 * (0.06 * 0.94 / num) ** 0.5, (share, kept, num_draws)


def test_unpaired_intervals_combine_the_ends_that_face_each_other():
    """All of 20 right against all of 30 wrong: both intervals are Wilson's and lie on one side."""
    difference = unpaired_difference(np.ones((20, 2), bool), np.zeros((30, 1), bool))
    (low, _), (_, high) = wilson_interval(1.0, 20), wilson_interval(0.0, 30)
    assert (difference.mean, difference.high) == (1, 1)
    assert difference.low == pytest.approx(1 - np.hypot(1 - low, high))
    opposite = unpaired_difference(np.zeros((30, 1), bool), np.ones((20, 2), bool))
    assert (opposite.low, opposite.high) == pytest.approx((-1, -difference.low))


def test_an_accuracy_reads_as_in_tables():
    assert str(Accuracy(0.5, 0.25, 1.0)) == "50.0 [25.0, 100.0]"


def test_certified_accuracy():
    """Right and far, right and near, right on the radius, wrong and far, abstained."""
    labels, certified, true = (
        np.array([4, 0, 2, 3, -1]),
        np.array([1.5, 0.125, 0.5, 2.0, 0.0]),
        np.array([4, 0, 2, 1, 0]),
    )
    figures = certified_accuracy(labels, certified, true, [0, 0.5, 3], confidence=0.6)
    assert figures["certified_accuracy"] == [0.6, 0.4, 0.0]
    low, high = wilson_interval(0.4, 5, 0.6)
    assert (figures["certified_accuracy_low"][1], figures["certified_accuracy_high"][1]) == (low, high)
    assert figures["average_certified_radius"] == pytest.approx((1.5 + 0.125 + 0.5) / 5)
    assert (figures["radii"], figures["abstained"], figures["num_images"]) == ([0, 0.5, 3], 0.2, 5)
