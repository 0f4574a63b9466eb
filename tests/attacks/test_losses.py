# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch

from transformers_nim.attacks import adversarial_loss
from transformers_nim.attacks.losses import LOSSES, BestIterates, Objective, targeted_dlr_loss


@pytest.fixture
def draws():
    return 3 * torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 2, 3, 4, 0])


def test_definitions(draws, labels):
    expected = {name: torch.zeros(6) for name in LOSSES}
    for image, label in enumerate(labels):
        for z in draws[image]:
            others = [value for index, value in enumerate(z) if index != label]
            ordered = sorted(z.tolist())
            margin = max(others) - z[label]
            expected["ce"][image] += -(z[label].exp() / z.exp().sum()).log() / 4
            expected["margin"][image] += margin / 4
            expected["dlr"][image] += margin / (ordered[-1] - ordered[-3]) / 4
        expected["vote"][image] = -draws[image].softmax(dim=-1).mean(dim=0)[label].log()
    for name in LOSSES:
        torch.testing.assert_close(adversarial_loss(name, draws, labels), expected[name], msg=name)


def test_margin_and_dlr_tell_wrong_from_right(draws, labels):
    for name in ("margin", "dlr"):
        wrong = adversarial_loss(name, draws[:, :1], labels) > 0
        assert torch.equal(wrong, draws[:, 0].argmax(dim=-1) != labels)
    torch.testing.assert_close(adversarial_loss("dlr", 100 * draws, labels), adversarial_loss("dlr", draws, labels))


def test_targeted_dlr_loss(draws, labels):
    targets = torch.tensor([3, 0, 4, 1, 2, 2])
    expected = torch.zeros(6)
    for image, (label, target) in enumerate(zip(labels, targets)):
        for z in draws[image]:
            ordered = sorted(z.tolist())
            expected[image] += (z[target] - z[label]) / (ordered[-1] - (ordered[-3] + ordered[-4]) / 2) / 4
    torch.testing.assert_close(targeted_dlr_loss(draws, labels, targets), expected)
    torch.testing.assert_close(targeted_dlr_loss(7 * draws + 2, labels, targets), expected)
    objective = Objective(lambda images: images, "dlr", 1, targets)
    with pytest.raises(ValueError, match="at least 4 classes; the classifier has 3"):
        targeted_dlr_loss(draws[..., :3], labels, targets)
    assert objective.targets is targets


def test_probabilities(draws, labels):
    certain = torch.nn.functional.one_hot(labels, 5).float()
    for name in ("ce", "vote"):
        torch.testing.assert_close(
            adversarial_loss(name, draws, certain), adversarial_loss(name, draws, labels), msg=name
        )
    half = (certain + certain.roll(1, dims=1)) / 2
    other = adversarial_loss("ce", draws, (labels + 1) % 5)
    torch.testing.assert_close(
        adversarial_loss("ce", draws, half), (adversarial_loss("ce", draws, labels) + other) / 2
    )
    for name in ("margin", "dlr"):
        with pytest.raises(ValueError, match="needs the one true class"):
            adversarial_loss(name, draws, certain)


def test_errors(draws, labels):
    with pytest.raises(ValueError, match="loss must be one of"):
        adversarial_loss("cw", draws, labels)
    with pytest.raises(ValueError, match="at least 3 classes; the classifier has 2"):
        adversarial_loss("dlr", draws[..., :2], labels.clamp(max=1))


def test_what_cannot_be_attacked_by_gradients_is_said(labels):
    pixels = torch.rand(6, 1, 2, 2)
    generators = [torch.Generator()] * 6
    with pytest.raises(ValueError, match="no gradient flows"):
        Objective(lambda images: images.detach().mean() + torch.eye(6), "ce", 1).gradient(pixels, labels, generators)


def test_best_iterates_by_loss_and_by_margin():
    """The highest cross entropy need not be a wrong answer."""
    labels = torch.tensor([0])
    # Right with probability 0.36 each way round; wrong with 0.4 for the label and 0.6 for another class.
    right, wrong = torch.tensor([[[0.36, 0.32, 0.32]]]).log(), torch.tensor([[[0.4, 0.6, 1e-9]]]).log()
    best = BestIterates(Objective(None, "ce", 1), labels)
    for number, logits in enumerate((wrong, right)):
        best.update(torch.full((1, 1, 1, 1), float(number)), adversarial_loss("ce", logits, labels), logits)
    assert [float(images) for images in best.candidates] == [1.0, 0.0]
