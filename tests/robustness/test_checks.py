# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Whole evaluations of models of which it is known how robust they are."""

import pytest
import torch
from attacks.toys import Linear, Masked, NormBall

from transformers_nim.records import start_records
from transformers_nim.robustness.checks import make_report, run_checks
from transformers_nim.robustness.inputs import EvaluationSet
from transformers_nim.robustness.runner import KEYS, Runner
from transformers_nim.robustness.suite import FGSM, HEADLINE, SQUARE, Strength, make_suite


SHAPE = (1, 6, 6)
NUM = 24
STRENGTH = Strength(NUM, 12, 11, steps=20, num_draws=2, restarts=1, num_queries=300)


def evaluate(classifier, pixels, labels, folder, num_labels=3, eps=8.0):
    settings = {"sigma": None, "eps": eps, "norm": "Linf", "sigmas": [None], "seed": 0}
    cells = make_suite(
        "quick", STRENGTH, eps=eps, sigma=None, eps_grid=[eps / 2], num_labels=num_labels, has_patches=False,
        image_shape=SHAPE,
    )  # fmt: skip
    images = EvaluationSet.from_tensors(pixels, labels)
    start_records(folder, settings, KEYS, resume=False)
    done = Runner(lambda *_: classifier, images, cells, STRENGTH, folder).run()
    return make_report(folder, settings, done, images)


def failed(report):
    return {check["name"] for check in report.checks if check["passed"] is False}


def gray(scale=0.02, seed=0):
    pixels = 0.5 + scale * torch.randn(NUM, *SHAPE, generator=torch.Generator().manual_seed(seed))
    # By far the outermost, so that the gradient of the largest distance is not at a kink.
    pixels[:, 0, 2, 3] = 0.6
    return pixels


class Saturated:
    """Probabilities so close to one and zero that the cross entropy has no gradient left."""

    is_deterministic = True

    def __init__(self, classifier):
        self.classifier = classifier

    def __call__(self, pixels):
        return 1e4 * self.classifier(pixels)


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pixels):
        return pixels.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient.roll(1, dims=-1)


class Misleading:
    """The same answers, and gradients that point somewhere else."""

    is_deterministic = True

    def __init__(self, classifier):
        self.classifier = classifier

    def __call__(self, pixels):
        return self.classifier(WrongGradient.apply(pixels))


@pytest.fixture(scope="module")
def linear():
    classifier = Linear(classes=3, shape=SHAPE)
    pixels = torch.rand(NUM, *SHAPE, generator=torch.Generator().manual_seed(1))
    return classifier, pixels, classifier(pixels).argmax(dim=1)


def test_an_undefended_model_falls_and_passes_every_check(tmp_path, linear):
    report = evaluate(*linear, tmp_path, eps=96.0)
    assert report.correct("clean", None).all()
    assert report.correct(HEADLINE, None).mean() == 0
    assert not failed(report)
    judged = [check for check in report.checks if check["passed"]]
    assert len(judged) >= 10
    assert any("defense to switch off" in check["detail"] for check in report.checks)


def test_a_model_that_is_robust_by_construction_is_reported_as_such(tmp_path):
    """No pixel is farther than 26/255 from gray, and up to 100/255 all is one class: 32/255 can do nothing."""
    report = evaluate(NormBall("Linf", 100 / 255), gray(), torch.zeros(NUM, dtype=torch.long), tmp_path)
    assert all(report.correct(cell["name"], None).all() for cell in report.cells if cell["eps"] <= 32)
    assert report.correct("EOT-PGD, unbounded", None).mean() == 0
    assert not failed(report)


def test_a_model_with_masked_gradients_is_flagged(tmp_path, linear):
    classifier, pixels, labels = linear
    report = evaluate(Masked(classifier, levels=32), pixels, labels, tmp_path, eps=96.0)
    names = failed(report)
    assert "gradients are there and not zero" in names
    assert "gradients agree with finite differences, at fixed noise" in names
    # It looks robust to attacks by gradients, and a query attack shows that it is not.
    assert report.correct(HEADLINE, None).mean() > report.correct(SQUARE, None).mean() + 0.2
    assert "white-box attacks beat transfer and query attacks" in names


def test_a_model_with_misleading_gradients_is_flagged(tmp_path, linear):
    classifier, pixels, labels = linear
    report = evaluate(Misleading(classifier), pixels, labels, tmp_path, eps=96.0)
    assert "gradients agree with finite differences, at fixed noise" in failed(report)
    assert "gradients are there and not zero" not in failed(report)


def test_a_model_without_gradients_is_flagged_and_still_attacked(tmp_path, linear):
    classifier, pixels, labels = linear
    report = evaluate(lambda x: classifier(x.detach()), pixels, labels, tmp_path, eps=96.0)
    assert "gradients are there and not zero" in failed(report)
    assert report.correct(SQUARE, None).mean() < 0.5
    assert HEADLINE not in {cell["name"] for cell in report.cells}


def test_saturation_does_not_hide_a_model(tmp_path, linear):
    """The margin loss sees what the cross entropy does not."""
    classifier, pixels, labels = linear
    report = evaluate(Saturated(classifier), pixels, labels, tmp_path, eps=96.0)
    assert report.correct(HEADLINE, None).mean() == 0


def test_checks_are_not_judged_without_their_cells(tmp_path, linear):
    report = evaluate(*linear, tmp_path, eps=96.0)
    report.cells = [cell for cell in report.cells if cell["name"] in ("clean", HEADLINE, FGSM)]
    checks = {(check["name"], check["passed"]) for check in run_checks(report, [])}
    assert ("white-box attacks beat transfer and query attacks", None) in checks
    assert ("gradients are there and not zero", None) in checks
    assert ("accuracy falls to about 0 at a large eps, or without bound", None) in checks
