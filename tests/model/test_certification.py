# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The statistics of randomized smoothing, against exact sums, closed forms and simulations of known probabilities."""

import sys
from itertools import pairwise
from math import comb, sqrt

import numpy as np
import pytest
from scipy import stats

from transformers_nim import ABSTAIN
from transformers_nim.model import certification
from transformers_nim.model.certification import (
    certified_radius,
    certify,
    clopper_pearson_lower,
    clopper_pearson_upper,
    predict,
    spending_schedule,
)


# In units of 0..255 pixels: 0.5 for pixels in [0, 1].
SIGMA = 127.5


def voter(probabilities, seed=0):
    """Votes with known probabilities."""
    rng = np.random.default_rng(seed)
    return lambda num: rng.multinomial(num, probabilities)


def scripted(*answers):
    """Votes that are given, and a list of how many draws were asked for."""
    asked, left = [], list(answers)

    def count_votes(num):
        asked.append(num)
        return np.array(left.pop(0))

    return count_votes, asked


def recorded(votes):
    """The given votes for the first of two classes, one after the other."""
    position = 0

    def count_votes(num):
        nonlocal position
        position += num
        right = int(votes[position - num : position].sum())
        return np.array([right, num - right])

    return count_votes


def upper_tail(successes, trials, probability):
    return sum(
        comb(trials, k) * probability**k * (1 - probability) ** (trials - k) for k in range(successes, trials + 1)
    )


# Bounds.


@pytest.mark.parametrize(("successes", "trials", "alpha"), [(1, 7, 0.05), (60, 100, 0.001), (99, 100, 0.01)])
def test_bounds_have_exactly_their_level(successes, trials, alpha):
    lower = clopper_pearson_lower(successes, trials, alpha)
    assert upper_tail(successes, trials, lower) == pytest.approx(alpha, rel=1e-9)
    upper = clopper_pearson_upper(successes, trials, alpha)
    assert 1 - upper_tail(successes + 1, trials, upper) == pytest.approx(alpha, rel=1e-9)
    assert lower < successes / trials < upper


def test_bounds_at_the_ends():
    assert clopper_pearson_lower(0, 50, 0.01) == 0
    assert clopper_pearson_upper(50, 50, 0.01) == 1
    for trials in (10, 1000, 100_000):
        assert clopper_pearson_lower(trials, trials, 0.001) == pytest.approx(0.001 ** (1 / trials), rel=1e-12)


def test_radius():
    assert certified_radius(0.99, SIGMA) == pytest.approx(0.5 * 2.3263478740)
    assert certified_radius(stats.norm.cdf(2), 255) == pytest.approx(2)
    assert certified_radius(0.5, SIGMA) == certified_radius(0.3, SIGMA) == 0


def test_linear_classifier_in_closed_form():
    """Smoothing leaves a linear classifier as it is, so the radius is the distance to its plane: to three digits."""
    weight, bias, image, sigma = np.array([3.0, -4.0]), 0.5, np.array([0.9, 0.3]), 0.25
    distance = (weight @ image + bias) / np.linalg.norm(weight)
    rng = np.random.default_rng(0)

    def count_votes(num):
        first = 0
        for start in range(0, num, 2_000_000):
            size = min(2_000_000, num - start)
            noisy = image + sigma * rng.standard_normal((size, 2), dtype=np.float32)
            first += int((noisy @ weight + bias > 0).sum())
        return np.array([num - first, first])

    certificate = certify(count_votes, 255 * sigma, n=40_000_000)
    assert certificate.label == 1
    assert distance == pytest.approx(0.4)
    assert 0.3995 < certificate.radius < 0.4


# The plain procedure.


def test_selection_and_bound_have_draws_of_their_own():
    count_votes, asked = scripted([3, 7], [150, 50])
    certificate = certify(count_votes, SIGMA, n0=10, n=200)
    assert asked == [10, 200]
    assert (certificate.candidate, certificate.label, certificate.radius) == (1, ABSTAIN, 0)
    assert certificate.abstained
    assert certificate.counts == (150, 50)
    assert certificate.p_lower == clopper_pearson_lower(50, 200, 0.001)
    assert (certificate.num_draws, certificate.sigma, certificate.alpha) == (210, SIGMA, 0.001)


def test_certificate_of_known_votes():
    count_votes, _ = scripted([2, 0, 8], [5, 5, 990])
    certificate = certify(count_votes, SIGMA, n0=10, n=1000, alpha=0.01)
    expected = stats.binomtest(990, 1000, alternative="greater").proportion_ci(0.99).low
    assert certificate.label == 2
    assert not certificate.abstained
    assert certificate.p_lower == pytest.approx(expected, rel=1e-6)
    assert certificate.radius == pytest.approx(0.5 * stats.norm.ppf(expected), rel=1e-6)


def failure_rate(probabilities, runs, sigma=SIGMA, **options):
    """How often label or radius are wrong, by more than rounding."""
    count_votes = voter(probabilities)
    best = int(np.argmax(probabilities))
    true_radius = certified_radius(probabilities[best], sigma)
    certificates = [certify(count_votes, sigma, **options) for _ in range(runs)]
    wrong = [c.label != ABSTAIN and (c.label != best or c.radius > true_radius + 1e-12) for c in certificates]
    return float(np.mean(wrong))


ALPHA, RUNS = 0.05, 3000
# Three standard errors of the rate.
SLACK = 3 * sqrt(ALPHA * (1 - ALPHA) / RUNS)


@pytest.mark.parametrize(
    ("probabilities", "n", "is_tight"),
    [
        ([0.1, 0.8, 0.1], 400, True),
        ([0.003, 0.997], 1000, False),
        ([0.5, 0.5], 400, False),
        ([0.4, 0.45, 0.15], 200, False),
    ],
)
def test_failure_probability(probabilities, n, is_tight):
    rate = failure_rate(probabilities, RUNS, n0=50, n=n, alpha=ALPHA)
    assert rate <= ALPHA + SLACK
    # Bounds that are merely cautious would pass too.
    assert not is_tight or rate > ALPHA / 2


# The sequential test.


def test_schedule_spends_alpha():
    for n in (1, 60, 80, 1000, 10_000, 100_000):
        looks, levels = zip(*spending_schedule(n, 0.001))
        assert looks[-1] == n
        assert sum(levels) == pytest.approx(0.001, rel=1e-12)
        assert min(levels) > 0
        assert all(1.4 < after / before < 1.55 for before, after in pairwise(looks))
    assert spending_schedule(60, 0.001) == [(60, 0.001)]
    assert len(spending_schedule(10_000, 0.001)) == 14


@pytest.mark.parametrize("options", [{}, {"radius_tolerance": 0.1}, {"target_radius": 0.3}])
@pytest.mark.parametrize("probabilities", [[0.2, 0.8], [0.5, 0.5], [0.4, 0.45, 0.15]])
def test_failure_probability_of_the_sequential_test(probabilities, options):
    options = {"n0": 50, "n": 1000, "alpha": ALPHA, "sequential": True, **options}
    assert failure_rate(probabilities, 1000, **options) <= ALPHA + 3 * sqrt(ALPHA * (1 - ALPHA) / 1000)


def test_stopping_at_the_first_wrong_bound_is_no_way_around_alpha(monkeypatch):
    """The worst of all rules: it stops at any look whose radius exceeds the true one."""
    probabilities = [0.1, 0.9]
    options = {"n0": 50, "n": 5000, "alpha": ALPHA, "sequential": True}
    options["target_radius"] = certified_radius(0.9, SIGMA) + 1e-9
    assert 0 < failure_rate(probabilities, RUNS, **options) <= ALPHA + SLACK
    # The same with alpha at every look, which is what a union bound is there to prevent.
    looks = [look for look, _ in spending_schedule(5000, ALPHA)]
    monkeypatch.setattr(certification, "spending_schedule", lambda n, alpha: [(look, alpha) for look in looks])
    assert failure_rate(probabilities, RUNS, **options) > 2 * ALPHA


def test_what_the_sequential_test_costs():
    """An image that needs all draws pays no more than documented."""
    plain = certify(lambda num: np.array([num, 0]), SIGMA)
    sequential = certify(lambda num: np.array([num, 0]), SIGMA, sequential=True)
    assert sequential.num_draws == plain.num_draws == 10_100
    assert sequential.p_lower == clopper_pearson_lower(10_000, 10_000, 0.0008)
    assert 0 < plain.radius - sequential.radius < 0.011 * SIGMA / 255


def test_more_cannot_be_certified_from_votes_without_exception():
    """What is said of easy images: they need their draws."""
    few = certify(lambda num: np.array([num, 0]), SIGMA, n=1000)
    assert few.radius == pytest.approx(0.5 * stats.norm.ppf(0.001 ** (1 / 1000)))
    assert few.radius < 0.8 * certify(lambda num: np.array([num, 0]), SIGMA).radius


def test_target_radius_makes_easy_images_cheap():
    for probability, most in ((1.0, 400), (0.97, 400), (0.85, 3000)):
        certificate = certify(
            voter([probability, 1 - probability]), SIGMA, n=10_000, sequential=True, target_radius=0.25
        )
        assert certificate.label == 0
        assert certificate.radius >= 0.25
        assert certificate.num_draws < most
    # Out of reach: the radius is what n draws give.
    count_votes = voter([0.7, 0.3])
    certificate = certify(count_votes, SIGMA, n=10_000, sequential=True, target_radius=0.5)
    assert 0.22 < certificate.radius < certified_radius(0.7, SIGMA)


def test_radius_tolerance_bounds_what_is_lost():
    tolerance, lost, drawn = 0.1, [], []
    for seed in range(60):
        for probability in (0.6, 0.75, 0.9, 0.99):
            # The same votes for both.
            votes = np.random.default_rng(seed).random(10_100) < probability
            radii = []
            for options in ({}, {"sequential": True, "radius_tolerance": tolerance}):
                certificate = certify(recorded(votes), SIGMA, **options)
                radii.append(certificate.radius)
            lost.append(radii[0] - radii[1])
            drawn.append(certificate.num_draws)
    assert np.quantile(lost, 0.99) < tolerance + 0.011 * SIGMA / 255
    assert np.mean(lost) > 0.2 * tolerance, "it stops before it has to"
    assert np.mean(drawn) < 0.4 * 10_100


def test_the_best_bound_of_all_looks_counts():
    """They hold at once. Here the candidate wins every vote up to the second look and none after it."""
    votes = np.arange(10_000) < 78
    certificate = certify(recorded(np.concatenate([np.ones(100, dtype=bool), votes])), SIGMA, sequential=True)
    assert spending_schedule(10_000, 0.001)[1][0] == 78
    assert certificate.p_lower == clopper_pearson_lower(78, 78, spending_schedule(10_000, 0.001)[1][1])
    assert certificate.num_draws > 178
    assert certificate.radius == certified_radius(certificate.p_lower, SIGMA)


def test_hopeless_images_are_given_up_early():
    certificate = certify(voter([0.35, 0.33, 0.32]), SIGMA, sequential=True)
    assert certificate.abstained
    assert certificate.num_draws < 1000
    # A tolerance larger than every radius gives no image up that can be certified.
    certificate = certify(voter([0.55, 0.45]), SIGMA, sequential=True, radius_tolerance=10)
    assert certificate.label == 0
    assert certificate.radius > 0


# Predictions.


def test_prediction_of_known_votes():
    for votes in ([60, 30, 10], [30, 45, 25], [10, 0, 10]):
        prediction = predict(scripted(votes)[0], SIGMA, n=100)
        top = sorted(votes, reverse=True)
        assert prediction.p_value == pytest.approx(stats.binomtest(top[0], top[0] + top[1]).pvalue, rel=1e-9)
        assert prediction.counts == tuple(votes)
    count_votes, asked = scripted([10, 90])
    prediction = predict(count_votes, SIGMA, n=100)
    assert asked == [100]
    assert (prediction.label, prediction.abstained) == (1, False)
    assert (prediction.num_draws, prediction.sigma, prediction.alpha) == (100, SIGMA, 0.001)
    prediction = predict(scripted([55, 45])[0], SIGMA, n=100)
    assert (prediction.label, prediction.abstained) == (ABSTAIN, True)


def test_error_of_predictions():
    for probabilities, wrong_labels in (([0.5, 0.5], (0, 1)), ([0.36, 0.34, 0.3], (1, 2))):
        count_votes = voter(probabilities)
        labels = [predict(count_votes, SIGMA, n=400, alpha=ALPHA).label for _ in range(RUNS)]
        rate = np.isin(labels, wrong_labels).mean()
        assert rate <= ALPHA + SLACK
        assert wrong_labels != (0, 1) or rate > ALPHA / 2
    assert predict(voter([0.7, 0.3]), SIGMA).label == 0


# Errors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be an int of at least 1, got 0"),
        ({"n": 1e4}, "n must be.*10000.0"),
        ({"n0": True}, "n0 must be.*True"),
        ({"alpha": 0}, "alpha must be.*got 0"),
        ({"alpha": 1.5}, "alpha must be.*1.5"),
        ({"sigma": 0}, "sigma must be.*got 0"),
        ({"sigma": float("inf")}, "sigma must be.*inf"),
        ({"sequential": True, "radius_tolerance": -1}, "radius_tolerance must be.*-1"),
        ({"sequential": True, "target_radius": 0}, "target_radius must be.*got 0"),
        ({"radius_tolerance": 0.1}, "pass sequential=True"),
        ({"target_radius": 0.1}, "pass sequential=True"),
    ],
)
def test_errors(options, message):
    count_votes, asked = scripted()
    with pytest.raises(ValueError, match=message):
        certify(count_votes, **{"sigma": SIGMA, **options})
    assert asked == []
    if not options.keys() - {"n", "alpha", "sigma"}:
        with pytest.raises(ValueError, match=message):
            predict(count_votes, **{"sigma": SIGMA, **options})


def test_scipy_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    for name in [name for name in sys.modules if name.startswith("scipy.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"transformers-nim\[certify\]"):
        certify(voter([0.9, 0.1]), SIGMA)
