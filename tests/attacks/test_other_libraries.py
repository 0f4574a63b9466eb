# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""`model.as_pixel_classifier()` as the model of Foolbox, of the Adversarial Robustness Toolbox and of torchattacks."""

import pytest
import torch
from conftest import tiny_model

from transformers_nim.model.outputs_nim import RobustImageClassifierOutput


EPS = 16 / 255


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(params=["off", "fixed noise", "fresh noise"])
def classifier(request, model):
    options = {"off": {"sigma": None}, "fixed noise": {"sigma": 20, "fixed_noise": True}, "fresh noise": {"sigma": 20}}
    return model.as_pixel_classifier(**options[request.param])


@pytest.fixture
def images(classifier):
    pixels = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return pixels, classifier(pixels).argmax(dim=1)


def margin_gain(classifier, before, after, labels):
    """Return by how much the loss rises under the same noise."""

    def loss(pixels):
        generators = [torch.Generator().manual_seed(row) for row in range(len(pixels))]
        with torch.no_grad():
            logits = classifier.draw_logits(pixels, 8, generators)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1]))

    return (loss(after) - loss(before)).item()


def check(model, classifier, pixels, adversarial, labels):
    assert (adversarial - pixels).abs().max() <= EPS + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert margin_gain(classifier, pixels, adversarial, labels) > 0.5
    # The user's model is as it was.
    assert not model.training
    parameters = list(model.named_parameters())
    assert all(parameter.grad is None for _, parameter in parameters)
    assert all(parameter.requires_grad != name.startswith("denoiser.") for name, parameter in parameters)


def test_foolbox(model, classifier, images):
    foolbox = pytest.importorskip("foolbox")
    pixels, labels = images
    state = torch.random.get_rng_state()
    wrapped = foolbox.PyTorchModel(classifier, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(steps=10, random_start=False)
    _, adversarial, _ = attack(wrapped, pixels, labels, epsilons=EPS)
    check(model, classifier, pixels, adversarial, labels)
    assert torch.equal(state, torch.random.get_rng_state())


def test_adversarial_robustness_toolbox(model, classifier, images):
    pytest.importorskip("art")
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    pixels, labels = images
    wrapped = PyTorchClassifier(
        model=classifier, loss=torch.nn.CrossEntropyLoss(), input_shape=(3, 32, 32), nb_classes=5,
        clip_values=(0, 1), device_type="cpu",
    )  # fmt: skip
    attack = ProjectedGradientDescent(wrapped, eps=EPS, eps_step=EPS / 4, max_iter=10, verbose=False)
    found = attack.generate(pixels.numpy(), y=torch.nn.functional.one_hot(labels, 5).numpy())
    check(model, classifier, pixels, torch.from_numpy(found), labels)


def test_torchattacks(model, classifier, images):
    torchattacks = pytest.importorskip("torchattacks")
    pixels, labels = images
    found = torchattacks.PGD(classifier, eps=EPS, alpha=EPS / 4, steps=10, random_start=False)(pixels, labels)
    check(model, classifier, pixels, found, labels)


class TestTheBareModel:
    """Its output is no tensor, and says what to pass instead."""

    NAMED = "RobustImageClassifierOutput is no tensor of logits.*model.as_pixel_classifier"

    def test_in_other_libraries(self, model):
        torchattacks = pytest.importorskip("torchattacks")
        pixels, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
        with pytest.raises(TypeError, match=f"cross_entropy: a {self.NAMED}"):
            torchattacks.FGSM(model)(pixels, labels)
        # As RobustBench and AutoAttack count right answers.
        with pytest.raises(AttributeError, match=f"max: a {self.NAMED}"):
            (model(pixels).max(1)[1] == labels).float().sum()

    def test_what_it_says_otherwise(self, model):
        output = RobustImageClassifierOutput(logits=torch.zeros(2, 3))
        for use in (torch.argmax, torch.exp, torch.nn.functional.softmax):
            with pytest.raises(TypeError, match=self.NAMED):
                use(output)
        assert not hasattr(output, "shape")
        assert not hasattr(output, "anything")
        assert output.loss is None
        with pytest.raises(AttributeError, match="has no attribute 'anything'"):
            output.anything  # noqa: B018
