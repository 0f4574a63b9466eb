# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
import torch

from transformers_nim.attacks import EOTPGD, PixelClassifier
from transformers_nim.robustness import correct_draws, mean_accuracy


def test_evaluation_noise_is_not_the_attacks():
    """With equal seeds, as the defaults are, an accuracy must not be measured on noise that the attack has seen."""
    seen = []

    def recorder(batch):
        noise = torch.randn(len(batch), 3)
        seen.append(noise)
        return noise + 0 * batch.sum()

    pixels, labels = torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.long)
    EOTPGD(steps=2, num_draws=4)(recorder, pixels, labels, eps=0.1)
    attacked = {tuple(row.tolist()) for row in torch.cat(seen)}
    seen.clear()
    correct_draws(recorder, pixels, labels, num_draws=8)
    assert not attacked & {tuple(row.tolist()) for row in torch.cat(seen)}


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


def test_a_broken_classifier_has_no_accuracy():
    """The position of the largest of several NaN is 0, which is a class."""
    pixels, labels = torch.rand(6, 1, 2, 2), torch.zeros(6, dtype=torch.long)
    with pytest.raises(FloatingPointError, match="logits are NaN for 6 images of 6"):
        correct_draws(lambda batch: torch.full((len(batch), 3), torch.nan), pixels, labels)


def test_right_answers_are_counted():
    pixels = torch.rand(10, 1, 2, 2)
    labels = torch.arange(10) % 2

    def always_one(batch):
        return torch.tensor([[0.0, 1.0]]).expand(len(batch), 2)

    correct = correct_draws(always_one, pixels, labels, num_draws=2, batch_size=3)
    np.testing.assert_array_equal(correct, (labels == 1).numpy()[:, None].repeat(2, axis=1))
    assert str(mean_accuracy(correct)).startswith("50.0 [")


def test_labels_that_are_no_classes_are_refused(robust_model):
    pixels, classifier = torch.rand(2, 3, 32, 32), PixelClassifier(robust_model, sigma=0)
    for wrong in ([0, 5], [0, -100], [[0, 1]], [0.0, 1.0]):
        with pytest.raises(ValueError, match="labels must be class numbers"):
            correct_draws(classifier, pixels, torch.tensor(wrong))
    # One for each image, not each with each.
    assert correct_draws(classifier, pixels, torch.tensor([[0], [1]]), num_draws=3).shape == (2, 3)
