# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
import torch

from transformers_nim.attacks import eot_pgd
from transformers_nim.robustness import correct_draws, mean_accuracy, wilson_interval


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


def test_evaluation_noise_is_not_the_attacks():
    """With equal seeds, as the defaults are, an accuracy must not be measured on noise that the attack has seen."""
    seen = []

    def recorder(batch):
        noise = torch.randn(len(batch), 3)
        seen.append(noise)
        return noise + 0 * batch.sum()

    pixels, labels = torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.long)
    eot_pgd(recorder, pixels, labels, 0.1, steps=2, num_draws=4)
    attacked = {tuple(row.tolist()) for row in torch.cat(seen)}
    seen.clear()
    correct_draws(recorder, pixels, labels, num_draws=8)
    assert not attacked & {tuple(row.tolist()) for row in torch.cat(seen)}


def test_no_images():
    with pytest.raises(ValueError, match="at least one image"):
        mean_accuracy(np.zeros((0, 3), dtype=bool))


def test_draws_are_fresh_and_repeatable():
    pixels, labels = torch.zeros(40, 1, 2, 2), torch.zeros(40, dtype=torch.long)

    def coin(batch):
        return torch.randn(len(batch), 2)

    state = torch.get_rng_state()
    correct = correct_draws(coin, pixels, labels, num_draws=6, batch_size=7, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert correct.shape == (40, 6)
    assert 0.3 < correct.mean() < 0.7
    assert not np.array_equal(correct[:, 0], correct[:, 1])
    np.testing.assert_array_equal(correct, correct_draws(coin, pixels, labels, num_draws=6, batch_size=7, seed=3))


def test_right_answers_are_counted():
    pixels = torch.rand(10, 1, 2, 2)
    labels = torch.arange(10) % 2

    def always_one(batch):
        return torch.tensor([[0.0, 1.0]]).expand(len(batch), 2)

    correct = correct_draws(always_one, pixels, labels, num_draws=2, batch_size=3)
    np.testing.assert_array_equal(correct, (labels == 1).numpy()[:, None].repeat(2, axis=1))
    assert str(mean_accuracy(correct)).startswith(" 50.0 [")
