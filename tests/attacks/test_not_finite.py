# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import warnings

import pytest
import torch
from attacks.toys import Linear

from transformers_nim.attacks import attack_options, available_attacks, make_attack
from transformers_nim.attacks.losses import BestIterates, Objective
from transformers_nim.attacks.not_finite import finite_gradient


class Cracked(Linear):
    """Linear, but of bright images the gradient is not finite in one row, and with `answers` not the logits either."""

    def __init__(self, answers=False):
        super().__init__(classes=5)
        self.answers = answers

    def __call__(self, pixels):
        bright = pixels.mean(dim=(1, 2, 3), keepdim=True) > 0.6
        if self.answers:
            return super().__call__(pixels.masked_fill(bright, torch.nan))
        # The slope of a root at 0 is infinite; times 0 it is no number.
        cracks = torch.where(bright, 0 * pixels[:, :, :1], 1.0).sqrt().sum(dim=(1, 2, 3))
        return super().__call__(pixels) + cracks[:, None]


def quick(name):
    small = {"steps": 4, "restarts": 1, "num_draws": 2, "num_queries": 9, "batch_size": 2, "resolution": 3}
    options = {key: value for key, value in small.items() if key in attack_options(name)}
    if name == "patch_statistics":
        options["patch_size"] = 2
    if name == "transfer":
        options |= {"source": Cracked(), "attack": "pgd"}
    if name == "autoattack":
        pytest.importorskip("pyautoattack")
        options["parts"] = ("apgd-ce", "fab", "square")
    elif name.startswith("torchattacks_"):
        pytest.importorskip("torchattacks")
    return make_attack(name, **options)


def by_gradients():
    return [name for name in available_attacks() if name not in ("none", "uniform_noise", "square")]


@pytest.mark.parametrize("name", by_gradients())
def test_attacks_go_on_and_say_on_which_images(name):
    """The third of three images is bright; the others are attacked as if it were not there."""
    classifier, labels = Cracked(), torch.tensor([0, 1, 2])
    pixels = torch.stack([torch.full((3, 4, 4), level) for level in (0.2, 0.4, 0.8)])
    labels = classifier(pixels).argmax(dim=1)
    found = []
    adversarial = quick(name)(classifier, pixels, labels, eps=0.1, on_not_finite=found.append)
    (positions,) = found
    # AutoAttack takes images in an order of its own.
    assert positions == ([0, 1, 2] if name == "autoattack" else [2])
    assert adversarial.isfinite().all()
    if name not in ("autoattack", "torchattacks_pgd", "torchattacks_eotpgd"):
        alone = quick(name)(classifier, pixels[:2], labels[:2], eps=0.1, on_not_finite=found.append)
        torch.testing.assert_close(adversarial[:2], alone)
        assert len(found) == 1
    # What is finite of the gradient is still followed.
    if name == "fgsm":
        assert (adversarial[2] - pixels[2])[:, 1:].abs().min() > 0.05


@pytest.mark.parametrize("name", ["eot_pgd", "eot_apgd_ce", "low_frequency", "fgsm"])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_infinite_slopes_lead_the_way(name, norm):
    def classifier(pixels):
        first = pixels[:, 0, 0, 0]
        # At 0 its slope is infinite.
        return torch.stack([torch.zeros_like(first), first.sqrt()], dim=1) + 0 * pixels.sum()

    classifier.is_deterministic = True
    pixels, labels = torch.zeros(1, 1, 4, 4), torch.tensor([0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adversarial = quick(name)(classifier, pixels, labels, eps=0.1, norm=norm)
    assert adversarial[0, 0, 0, 0] > 0.01


def test_what_is_not_finite_is_warned_of():
    pixels = torch.stack([torch.full((3, 4, 4), level) for level in (0.2, 0.8)])
    with pytest.warns(UserWarning, match=r"FGSM met a loss or a gradient that is not finite on images \[1\] of the"):
        quick("fgsm")(Cracked(), pixels, torch.tensor([0, 1]), eps=0.1)


@pytest.mark.parametrize("name", ["eot_pgd", "eot_apgd_ce", "square"])
def test_an_answer_that_is_no_number_is_wrong(name):
    """Brightening an image beyond a mean of 0.6 breaks the classifier: the attack finds that out."""
    classifier, found = Cracked(answers=True), []
    pixels = torch.full((1, 3, 4, 4), 0.59)
    # Nothing else can succeed, but the second logit rises with the brightness.
    classifier.weight[:] = 0
    classifier.weight[0, 0, 0, 0] = 100.0
    classifier.weight[1] = 1.0
    adversarial = quick(name)(classifier, pixels, torch.tensor([0]), eps=0.2, on_not_finite=found.append)
    assert found == [[0]]
    assert classifier(adversarial).isnan().all()


def test_numbers_that_are_compared_are_finite():
    gradient = finite_gradient(torch.tensor([torch.nan, torch.inf, -torch.inf, 2.0]))
    assert gradient.tolist() == [0.0, pytest.approx(1e15), pytest.approx(-1e15), 2.0]
    logits = torch.tensor([[[torch.nan, 0.0]], [[0.0, 0.0]], [[0.0, torch.inf]]])
    objective = Objective(lambda images: logits[:, 0], "ce", 1)
    loss, _ = objective.draws(torch.zeros(3, 1, 1, 1), torch.zeros(3, dtype=torch.long), [None] * 3)
    assert loss.isfinite().all()
    assert loss[0] > 1e29
    assert loss[1] < 1
    best = BestIterates(objective, torch.zeros(3, dtype=torch.long))
    for level in (0.0, 1.0):
        best.update(torch.full((3, 1, 1, 1), level), loss, logits if level else torch.zeros(3, 1, 2))
    assert best.candidates[1].flatten().tolist() == [1.0, 0.0, 1.0]
