# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
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


def test_intervals_cover_the_truth():
    """Images of different difficulty, several draws each: about 95 of 100 intervals hold the true mean."""
    rng = np.random.default_rng(0)
    covered, widths = 0, []
    for _ in range(200):
        # Difficulties uniform in [0, 1], so the true accuracy is 0.5.
        correct = rng.random((60, 8)) < rng.random((60, 1))
        accuracy = mean_accuracy(correct, num_resamples=400)
        covered += accuracy.low <= 0.5 <= accuracy.high
        widths.append(accuracy.high - accuracy.low)
    assert covered >= 184
    # Eight draws tell more than one: a mean of 60 images of s.d. 0.29, plus the noise of the draws.
    low, high = wilson_interval(0.5, 60)
    assert np.mean(widths) < 0.8 * (high - low)


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
    assert paired.low == pytest.approx(0.05 - 1.96 * 0.0218, abs=0.011)
    assert paired.high == pytest.approx(0.05 + 1.96 * 0.0218, abs=0.011)
    assert not paired.includes_zero
    assert unpaired.includes_zero
    # Two accuracies of 0.50 and 0.45 with standard errors of 0.05: sqrt(2) * 1.96 * 0.05.
    assert unpaired.high - unpaired.mean == pytest.approx(0.1386, abs=0.02)
    assert paired_difference(b, a).mean == pytest.approx(-0.05)


def test_numbers_of_draws_may_differ():
    difference = paired_difference(np.ones((20, 1), bool), np.array([[True, False, True, False]] * 20))
    assert difference.mean == pytest.approx(0.5)
    # 80 draws of a coin: a standard error of 0.056.
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * 0.0559, rel=0.15)


@pytest.mark.parametrize(("a", "b", "mean"), [(1, 1, 0), (0, 0, 0), (1, 0, 1), (0, 1, -1)])
def test_differences_without_variation_are_not_certain(a, b, mean):
    difference = paired_difference(np.full((20, 3), bool(a)), np.full((20, 5), bool(b)))
    _, half = wilson_interval(0.0, 20)
    assert difference.mean == mean
    assert difference.low == pytest.approx(max(-1, mean - half))
    assert difference.high == pytest.approx(min(1, mean + half))
    assert difference.includes_zero == (mean == 0)


def test_pairs_need_the_same_images():
    with pytest.raises(ValueError, match="got 3 and 4"):
        paired_difference(np.zeros((3, 1), bool), np.zeros((4, 1), bool))
    with pytest.raises(ValueError, match="at least one"):
        paired_difference(np.zeros((0, 1), bool), np.zeros((0, 1), bool))
    assert str(paired_difference(np.ones((4, 1), bool), np.zeros((4, 1), bool))).startswith("+100.0 [+5")


def test_paired_intervals_cover_the_truth():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(150):
        hardness = rng.random((60, 1))
        a, b = (rng.random((60, draws)) < hardness * scale for draws, scale in ((8, 1.0), (11, 0.8)))
        difference = paired_difference(a, b, num_resamples=300)
        covered += difference.low <= 0.1 <= difference.high
    assert covered >= 136


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
