# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import doctest
import inspect
from dataclasses import dataclass

import pytest
import torch
from conftest import tiny_model
from toys import Linear

import transformers_nim.attacks
from transformers_nim import NIMForImageClassification
from transformers_nim.attacks import (
    Attack,
    PixelClassifier,
    attack_options,
    available_attacks,
    make_attack,
    register_attack,
    registry,
)


NAMES = [
    "apgd_t", "autoattack", "eot_apgd_ce", "eot_apgd_dlr", "eot_pgd", "fgsm", "low_frequency", "none",
    "patch_statistics", "pgd", "square",
    "torchattacks_eotpgd", "torchattacks_fgsm", "torchattacks_pgd", "transfer", "uniform_noise", "vote",
]  # fmt: skip
LINF_ONLY = {"torchattacks_eotpgd", "torchattacks_fgsm", "torchattacks_pgd"}


def quick(name):
    """Return an attack with a tiny budget."""
    small = {"steps": 2, "restarts": 1, "num_draws": 2, "num_queries": 9, "resolution": 3, "batch_size": 4}
    options = {key: value for key, value in small.items() if key in attack_options(name)}
    if name == "transfer":
        options = {"source": PixelClassifier(tiny_model(NIMForImageClassification)), "attack": "pgd"}
    if name in LINF_ONLY:
        pytest.importorskip("torchattacks")
    if name == "autoattack":
        pytest.importorskip("pyautoattack")
        options["parts"] = ("apgd-ce", "fab", "square")
    return make_attack(name, **options)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "eot_apgd_dlr", "square", "vote"])
def test_labels_that_are_no_classes_are_refused_in_a_sentence(name, robust_model):
    pixels, attack = torch.rand(2, 3, 32, 32), quick(name)
    for classifier in (PixelClassifier(robust_model, sigma=0), lambda pixels: robust_model(pixels, sigma=None).logits):
        for wrong in (torch.tensor([0, 9]), torch.tensor([0, -1])):
            with pytest.raises(ValueError, match=rf"class numbers from 0( to 4)?, got {wrong[1]}"):
                attack(classifier, pixels, wrong, eps=0.03)
    for wrong in (torch.tensor([True, False]), torch.tensor([0.0, 1.0]), torch.zeros(2, 2, 1, dtype=torch.long)):
        with pytest.raises(ValueError, match="labels must be"):
            attack(PixelClassifier(robust_model, sigma=0), pixels, wrong, eps=0.03)
    right = attack(PixelClassifier(robust_model, sigma=0), pixels, torch.tensor([0, 1]), eps=0.03)
    for same in (torch.tensor([[0], [1]]), torch.tensor([0, 1], dtype=torch.uint8)):
        assert torch.equal(right, attack(PixelClassifier(robust_model, sigma=0), pixels, same, eps=0.03))


def test_names():
    assert available_attacks() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_perturbations_stay_in_their_bounds(name, robust_model):
    """Several norms, radii, labels and numbers of images, checked here too."""
    attack = quick(name)
    generator = torch.Generator().manual_seed(0)
    for trial in range(6):
        norm = "L2" if trial % 2 and name not in LINF_ONLY else "Linf"
        eps = [0.0, 0.02, 0.1, 0.5, 1.0, 3.0 if norm == "L2" else 0.7][trial]
        num_images = int(torch.randint(1, 6, (), generator=generator))
        pixels = torch.rand(num_images, 3, 32, 32, generator=generator)
        pixels = (2 * pixels - 0.5).clamp(0, 1)  # half of them at the border of the range
        labels = torch.randint(5, (num_images,), generator=generator)
        classifier = PixelClassifier(robust_model, sigma=30, fixed_noise=name == "autoattack")
        clean = pixels.clone()
        adversarial = attack(classifier, pixels, labels, norm=norm, eps=eps, seeds=range(num_images))
        assert torch.equal(pixels, clean)
        assert adversarial.shape == pixels.shape
        assert not adversarial.requires_grad
        delta = (adversarial - pixels).flatten(1)
        distance = delta.abs().max() if norm == "Linf" else delta.norm(dim=1).max()
        assert distance <= eps + 1e-6
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
        if name not in ("none", "autoattack") and eps:
            assert distance > 0.05 * min(eps, 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_else_changes(name, capsys):
    """Neither the model nor the global random state changes, and nothing is printed."""
    model, attack = tiny_model(), quick(name)
    pixels, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    classifier = PixelClassifier(model, sigma=30, fixed_noise=name == "autoattack")
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in [classifier, *model.modules()]]
    state = torch.get_rng_state()
    first = attack(classifier, pixels, labels, norm="Linf", eps=0.1, seeds=[3, 4])
    assert torch.equal(state, torch.get_rng_state())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [module.training for module in [classifier, *model.modules()]] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in weights.items())
    assert capsys.readouterr() == ("", "")
    torch.manual_seed(1)
    assert torch.equal(attack(classifier, pixels, labels, norm="Linf", eps=0.1, seeds=[3, 4]), first)


@pytest.mark.parametrize("name", NAMES)
def test_pixels_that_are_rounded(name, robust_model):
    """Black and white come back from many normalizations beside 0 and 1."""
    classifier = PixelClassifier(robust_model, sigma=30, fixed_noise=name == "autoattack")
    pixels, labels = torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])
    pixels[0], pixels[1] = -3e-8, 1 + 2.0**-23
    norm = "Linf" if name in LINF_ONLY else "L2"
    adversarial = quick(name)(classifier, pixels, labels, eps=0.1, norm=norm)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["eot_pgd", "eot_apgd_ce", "square", "transfer", "none"])
def test_half_precision_is_searched_in_float32(name, dtype, robust_model):
    """A step of 2/255 is hardly more than bfloat16 can tell of a bright pixel."""
    pixels, labels = torch.rand(2, 3, 32, 32).to(dtype), torch.tensor([0, 1])
    seen, weight = [], torch.randn(3 * 32 * 32, 5, dtype=dtype)

    def in_half(images):
        seen.append(images.dtype)
        return images.flatten(1) @ weight

    in_half.is_deterministic = True
    for classifier in (PixelClassifier(robust_model, sigma=30), in_half):
        adversarial = quick(name)(classifier, pixels, labels, eps=8 / 255)
        assert adversarial.dtype == torch.float32
        assert (adversarial - pixels.float()).abs().max() <= 8 / 255 + 1e-6
    assert set(seen) == (set() if name in ("none", "transfer") else {dtype})


def test_wrong_names_and_options():
    with pytest.raises(ValueError, match=r"unknown attack 'cw'; known: \['apgd_t', 'autoattack'"):
        make_attack("cw")
    with pytest.raises(ValueError, match=r"has no option \['step', 'stps'\]; it has \['batch_size', 'step_size'"):
        make_attack("pgd", stps=3, step=1)
    with pytest.raises(ValueError, match=r"needs the option \['source'\]"):
        make_attack("transfer")
    assert attack_options("pgd") == {"steps": 10, "step_size": None, "batch_size": 64}
    assert attack_options("eot_apgd_dlr") == {"steps": 100, "restarts": 3, "num_draws": 20, "batch_size": 64}
    assert attack_options("transfer")["source"] is inspect.Parameter.empty
    with pytest.raises(ValueError, match="steps must be an int of at least 1, got 0"):
        make_attack("pgd", steps=0)


@pytest.fixture
def registered(monkeypatch):
    """Forget attacks that a test registers."""
    monkeypatch.setattr(registry, "_ATTACKS", dict(registry._ATTACKS))


def test_own_attacks(registered):
    @register_attack("brighter")
    @dataclass(frozen=True)
    class Brighter(Attack):
        by: float = 1.0

        def _perturb(self, classifier, pixels, labels, ball, seeds, on_step):
            torch.rand(1)  # from the global random state, which the caller finds unchanged
            on_step()
            return pixels + self.by * ball.eps

    pixels, labels = torch.full((2, 3, 4, 4), 0.5), torch.tensor([0, 1])
    assert attack_options("brighter") == {"by": 1.0}
    assert "brighter" in available_attacks()
    assert make_attack("brighter")(Linear(), pixels, labels, norm="Linf", eps=0.1, seeds=[0, 1]).max() == 0.6
    steps, state = [], torch.get_rng_state()
    assert Brighter(by=0.5)(Linear(), pixels, labels, eps=0.1, on_step=lambda: steps.append(1)).max() == 0.55
    assert steps == [1]
    assert torch.equal(torch.get_rng_state(), state)
    assert Brighter()(Linear(), pixels[:0], labels[:0], eps=0.1).shape == (0, 3, 4, 4)
    # An attack that does not keep to its ball does not pass.
    with pytest.raises(ValueError, match="left its bounds"):
        make_attack("brighter", by=2.0)(Linear(), pixels, labels, eps=0.1)
    with pytest.raises(ValueError, match=r"'pgd' is already transformers_nim\.attacks\.pgd\.PGD"):
        register_attack("pgd")(Brighter)


def test_what_is_no_attack_is_refused(registered):
    @dataclass(frozen=True)
    class Nothing:
        by: float = 1.0

    class Undecorated(Attack):
        by: float = 1.0  # would be no option

    for wrong in (Nothing, Undecorated, lambda classifier: classifier):
        with pytest.raises(ValueError, match=r"'dimmer' must be a subclass of Attack under @dataclass\(frozen=True\)"):
            register_attack("dimmer")(wrong)
    assert "dimmer" not in available_attacks()


def test_public_names_are_documented():
    for name in transformers_nim.attacks.__all__:
        value = getattr(transformers_nim.attacks, name)
        assert value.__doc__, name
        if inspect.isclass(value):
            for method, function in vars(value).items():
                assert method.startswith("_") or not inspect.isfunction(function) or function.__doc__, method


@pytest.mark.parametrize("value", [PixelClassifier, registry.make_attack, registry.register_attack])
def test_examples_run(value, registered, capsys):
    (test,) = doctest.DocTestFinder(recurse=False).find(value, globs={})
    test.examples[-1].want = test.examples[-1].want.replace("```\n", "")
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0, capsys.readouterr().out
