# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Attacks of other libraries find the same images as the library itself, and change nothing else."""

import contextlib
import io
import random
import sys

import numpy as np
import pytest
import torch
from toys import Linear, Noisy, boundary_points

from transformers_nim.attacks import (
    PGD,
    AutoAttack,
    PixelClassifier,
    TorchattacksEOTPGD,
    TorchattacksFGSM,
    TorchattacksPGD,
)
from transformers_nim.attacks.external import _contained


@pytest.fixture
def pixels():
    return torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 2])


class TestTorchattacks:
    def test_finds_what_ours_finds_on_a_linear_classifier(self, pixels, labels):
        pytest.importorskip("torchattacks")
        classifier, labels = Linear(), labels.clamp(max=1)
        best = (pixels + 0.1 * classifier.gap(labels).sign()).clamp(0, 1)
        for attack in (
            TorchattacksFGSM(),
            TorchattacksPGD(steps=30),
            TorchattacksEOTPGD(steps=30, num_draws=2),
            PGD(steps=30),
        ):
            found = attack(classifier, pixels, labels, eps=0.1)
            torch.testing.assert_close(found, best, atol=1e-6, rtol=0, msg=repr(attack))

    def test_noise_is_that_of_the_seeds(self, labels):
        pytest.importorskip("torchattacks")
        linear = Linear(3, shape=(1, 4, 4))
        pixels, classifier = torch.rand(3, 1, 4, 4), Noisy(lambda x: torch.tanh(linear(x)), 0.5)
        attack = TorchattacksEOTPGD(steps=3, num_draws=4)
        found = [
            attack(classifier, pixels, labels, eps=0.1, seeds=seeds) for seeds in ([0, 1, 2], [0, 1, 2], [0, 3, 4])
        ]
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])

    def test_the_adapter_can_be_given_to_it_directly(self, robust_model):
        torchattacks = pytest.importorskip("torchattacks")
        classifier, images = PixelClassifier(robust_model, sigma=30), torch.rand(2, 3, 32, 32)
        with contextlib.redirect_stdout(io.StringIO()) as output:
            found = torchattacks.PGD(classifier, eps=0.1, steps=2)(images, torch.tensor([0, 1]))
        assert output.getvalue() == ""
        assert 0.01 < (found - images).abs().max() <= 0.1 + 1e-6
        assert not robust_model.training

    def test_other_norms(self, pixels, labels):
        for attack in (TorchattacksFGSM(), TorchattacksPGD(), TorchattacksEOTPGD()):
            with pytest.raises(ValueError, match="is an attack for Linf alone, got 'L2'"):
                attack(Linear(), pixels, labels, norm="L2", eps=0.1)


class TestAutoAttack:
    def test_needs_a_deterministic_classifier(self, robust_model, pixels, labels):
        for classifier in (PixelClassifier(robust_model, sigma=30), lambda images: images.mean()):
            with pytest.raises(ValueError, match="fixed_noise=True"):
                AutoAttack()(classifier, pixels, labels, eps=0.1)

    def test_missing_package_is_named(self, monkeypatch, pixels, labels):
        monkeypatch.setitem(sys.modules, "pyautoattack", None)
        with pytest.raises(ImportError, match=r"pip install 'transformers-nim\[autoattack\]'"):
            AutoAttack(parts=("apgd-ce",))(Linear(), pixels, labels.clamp(max=1), eps=0.1)

    @pytest.mark.parametrize(("norm", "dual", "eps"), [("Linf", 1, 0.05), ("L2", 2, 0.3)])
    def test_breaks_what_lies_within_the_radius(self, norm, dual, eps):
        """The margin of a linear classifier falls by at most eps times the dual norm of its slope."""
        pytest.importorskip("pyautoattack")
        linear = Linear(shape=(3, 8, 8))
        reach = eps * torch.linalg.vector_norm(linear.weight[1] - linear.weight[0], ord=dual)
        near, far = (boundary_points(linear, 4, share * float(reach)) for share in (0.9, 1.1))
        pixels, labels = torch.cat([near, far]), torch.zeros(8, dtype=torch.long)
        attack = AutoAttack(parts=("apgd-ce", "square"), steps=30, num_queries=5)
        found = attack(linear, pixels, labels, norm=norm, eps=eps)
        assert linear(found).argmax(dim=-1).tolist() == [1] * 4 + [0] * 4
        assert torch.equal(found[4:], far)

    def test_parts(self, pixels, labels):
        pytest.importorskip("pyautoattack")
        with pytest.raises(ValueError, match="parts must be one or more of"):
            AutoAttack(parts=("pgd",))
        with pytest.raises(ValueError, match=r"\['apgd-t'\] need more than the classifier's 3 classes"):
            AutoAttack()(Linear(3), pixels, labels, eps=0.1)
        # Fewer classes than the 10 of its default targets, and images that reach every part.
        classifier = Linear(4)
        right = classifier(pixels).argmax(dim=-1)
        found = AutoAttack(steps=3, num_queries=3)(classifier, pixels, right, eps=1e-3)
        assert torch.equal(classifier(found).argmax(dim=-1), right)


def test_everything_global_is_put_back():
    def trace(*_):
        return None

    def change_everything():
        with _contained(torch.device("cpu")):
            torch.manual_seed(5)
            random.seed(5)
            np.random.seed(5)
            sys.settrace(None)
            raise KeyError("inside")

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(KeyError, match="inside"):
            change_everything()
        kept = sys.gettrace()
    finally:
        sys.settrace(before)
    assert kept is trace
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
