# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""PGD of adversarial training: on losses of which the best perturbation is known."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_model

from transformers_nim.attacks import EOTPGD, Ball
from transformers_nim.data.draws import unit_ball_point
from transformers_nim.training.attack import TrainingAttack, attacked_mode


sys.path.append(str(Path(__file__).parents[1] / "attacks"))
from toys import Linear


LABELS = torch.tensor([0, 1, 0, 1])
SHAPE = torch.Size((3, 4, 4))


def losses_of(linear):
    return lambda pixels: torch.nn.functional.cross_entropy(linear(pixels), LABELS, reduction="sum")


def starts(norm, num=4):
    generators = [torch.Generator().manual_seed(row) for row in range(num)]
    return torch.stack([unit_ball_point(norm, SHAPE, generator) for generator in generators])


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_linear_model_is_attacked_as_well_as_can_be(norm):
    """So are the attacks of the evaluation, which take the same steps."""
    linear, pixels = Linear(), torch.full((4, *SHAPE), 0.5)
    attack, ball = TrainingAttack(0.05, 20, 0.05, norm), Ball(norm, 0.05)
    adversarial = attack(losses_of(linear), pixels, starts(norm))
    best = pixels + 0.05 * ball.steepest(linear.gap(LABELS))
    tolerance = {"Linf": 1e-6, "L2": 1e-3}[norm]
    torch.testing.assert_close(adversarial, best, atol=tolerance, rtol=0)
    evaluated = EOTPGD(losses=("ce",), steps=20, step_size=0.05, restarts=1, num_draws=1, keep_best=False)(
        linear, pixels, LABELS, eps=0.05, norm=norm, seed=0
    )
    torch.testing.assert_close(adversarial, evaluated, atol=2 * tolerance, rtol=0)
    ball.check(pixels, adversarial)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_one_step_goes_from_the_start_along_the_steepest_direction(norm):
    linear, pixels = Linear(), torch.rand((4, *SHAPE), generator=torch.Generator().manual_seed(3))
    ball = Ball(norm, 0.1)
    start = ball.project(pixels, pixels + 0.1 * starts(norm))
    expected = ball.project(pixels, start + 0.03 * ball.steepest(linear.gap(LABELS)))
    found = TrainingAttack(0.1, 1, 0.03, norm)(losses_of(linear), pixels, starts(norm))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert not found.requires_grad
    # 2.5 * eps / steps is the default.
    default, explicit = (TrainingAttack(0.1, 2, size, norm)(losses_of(linear), pixels, starts(norm))
                         for size in (None, 0.125))  # fmt: skip
    assert torch.equal(default, explicit)


def test_eps_and_step_rise_from_zero():
    linear, pixels = Linear(), torch.full((4, *SHAPE), 0.5)
    attack = TrainingAttack(0.08, 2, 0.03, warmup_steps=4)
    for update, share in enumerate([0, 0.25, 0.5, 0.75, 1, 1]):
        found = attack(losses_of(linear), pixels, starts("Linf"), update)
        if share == 0:
            assert torch.equal(found, pixels)
            continue
        expected = TrainingAttack(share * 0.08, 2, share * 0.03)(losses_of(linear), pixels, starts("Linf"))
        torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)


def test_eval_mode_keeps_gradient_checkpointing():
    """Without what is random in the layers."""
    model = tiny_model(hidden_dropout_prob=0.3, drop_path_rate=0.3).train()
    # Renamed in transformers 5.23.
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
    modes = [module.training for module in model.modules()]
    pixel_values = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    kept = []

    def loss():
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            return model(pixel_values, sigma=None).logits.square().sum()

    with attacked_mode(model):
        checkpointed, few = loss(), sum(kept)
        (gradient,) = torch.autograd.grad(checkpointed, pixel_values)
    assert modes == [module.training for module in model.modules()]
    kept.clear()
    model.eval()
    assert torch.equal(checkpointed, loss())
    assert few < sum(kept) / 3
    (expected,) = torch.autograd.grad(loss(), pixel_values)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("eps", "steps", "step_size"),
    [(0, 1, None), (-1, 1, None), (8, 1, None), (0.1, 0, None), (0.1, 1, 0), (0.1, 1, -2.0), (float("nan"), 1, None)],
)
def test_numbers_out_of_range(eps, steps, step_size):
    with pytest.raises(ValueError, match=rf"in x/255\).*got {eps}, {steps}, {step_size} and 0"):
        TrainingAttack(eps, steps, step_size)


def test_an_unknown_norm_and_a_negative_warm_up():
    with pytest.raises(ValueError, match=r"norm must be one of .*'L1'"):
        TrainingAttack(0.1, 1, norm="L1")
    with pytest.raises(ValueError, match="and -1"):
        TrainingAttack(0.1, 1, warmup_steps=-1)
    # Radii of L2 are not bounded by the range of a pixel.
    assert TrainingAttack(2.0, 1, norm="L2").eps == 2


def test_an_attack_in_words():
    assert str(TrainingAttack(8 / 255, 2)) == "PGD-2, Linf 8/255, through the defense, shared noise"
    classifier = TrainingAttack(0.5 / 255, 1, through_defense=False)
    assert str(classifier) == "PGD-1, Linf 0.5/255, through the classifier, no noise"
    warmed_up = TrainingAttack(128 / 255, 1, norm="L2", shared_noise=False, warmup_steps=7)
    assert str(warmed_up) == (
        "PGD-1, L2 128/255, through the defense, independent noise, eps warmed up over 7 updates"
    )
