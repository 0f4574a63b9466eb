# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
from dataclasses import replace

import pytest
import torch

from transformers_nim.attacks import geometry, make_attack
from transformers_nim.commands.evaluate import parse_arguments
from transformers_nim.robustness.evaluation import EvaluationOptions
from transformers_nim.robustness.protocol import (
    BUDGETS,
    CLEAN,
    HEADLINE,
    NOISE_KNOWN,
    AttackBudget,
    ModelFacts,
    Suite,
    fast_precision,
)


def suite(name="quick", **changes):
    facts = {"sigma": 50.0, "sigmas": [None, 0.0, 25.0], "num_labels": 10}
    facts |= {key: changes.pop(key) for key in list(changes) if key in ModelFacts.__dataclass_fields__}
    return Suite(name, BUDGETS[name], ModelFacts(**facts), **{"eps": 8, "eps_grid": [2.0, 4.0], **changes})


def configurations(name="quick", **changes):
    return suite(name, **changes).configurations()


def named(name="quick", **changes):
    return {one.name: one for one in configurations(name, **changes)}


def test_names_are_unique_and_clean_images_come_first():
    for name in BUDGETS:
        made = configurations(name, surrogates=["undefended"], further_attacks=["torchattacks_eotpgd", "vote"])
        assert len({one.name for one in made}) == len(made)
        assert made[0].name == CLEAN
        assert made[0].defense_sigmas == (50.0, None, 0.0, 25.0)


def test_attacks_exist_and_take_their_options():
    for name in BUDGETS:
        for one in configurations(name, surrogates=["undefended"], with_autoattack=True):
            needed = {"source": None} if one.source else {}
            make_attack(one.attack, **one.options, **needed)


def test_quick_crosses_two_lines_and_full_fills_the_grid():
    def grid(name):
        made = configurations(name)
        own = [c for c in made if c.attack == "eot_pgd" and c.group in ("white-box", "grid") and not c.fixed_noise]
        return {(one.eps, one.attack_sigma) for one in own}

    line = {(8, 50.0), (8, None), (8, 0.0), (8, 25.0), (2.0, 50.0), (4.0, 50.0)}
    assert grid("quick") == line
    sigmas = (50.0, None, 0.0, 25.0)
    assert grid("full") == {(eps, sigma) for eps in (8, 2.0, 4.0) for sigma in sigmas}


def test_the_main_attack_is_as_strong_as_the_protocol_says():
    options = named("full")[HEADLINE].options
    assert options == {"steps": 100, "num_draws": 20, "restarts": 3, "batch_size": 20}
    # 100 steps, 20 draws, 3 restarts with each of two losses.
    assert named("full")[HEADLINE].cost == (12_000, 240)
    assert BUDGETS["full"].num_evaluations >= 32
    assert BUDGETS["quick"].num_evaluations >= 11


def test_known_noise_and_the_bare_classifier_need_one_draw():
    made = named()
    assert made[NOISE_KNOWN].cost == (40, 4)
    assert made["EOT-PGD, sigma off"].cost == (40, 4)
    assert made["EOT-PGD, sigma 25"].cost == (320, 32)
    assert made["EOT-PGD, sigma off"].defense_sigmas == (50.0, None, 0.0, 25.0)


def test_a_model_without_a_defense_has_none_of_one():
    made = named(sigma=None, sigmas=[])
    assert {one.attack_sigma for one in made.values()} == {None}
    assert not {"BPDA", NOISE_KNOWN, "patch statistics", "vote"} & made.keys()


def test_two_classes_have_no_dlr_loss():
    assert "EOT-APGD-DLR" not in named(num_labels=2)
    assert "EOT-APGD-DLR" in named(num_labels=3)


def test_deterministic_models_meet_targeted_attacks_and_autoattack():
    for sigma in (None, 0.0):
        facts = {"sigma": sigma, "sigmas": [None, 25.0]}
        one = named(**facts)["APGD-T"]
        assert (one.group, one.attack, one.attack_sigma, one.defense_sigmas[0]) == (
            "white-box",
            "apgd_t",
            sigma,
            sigma,
        )
        assert (one.options["num_targets"], one.options["steps"], one.options["restarts"]) == (3, 20, 1)
        # 20 steps towards each of three classes.
        assert one.cost == (60, 6)
        full = named("full", **facts, with_autoattack=True)
        assert full["APGD-T"].options["num_targets"] == 9
        assert (full["AutoAttack"].group, full["AutoAttack"].num_images) == ("white-box", 1000)
        assert full["AutoAttack"].options == {"batch_size": 1}
        few = named("full", **facts, num_labels=4, with_autoattack=True)
        assert few["APGD-T"].options["num_targets"] == 3
        fewer = named("full", **facts, num_labels=3, with_autoattack=True)
        assert "APGD-T" not in fewer
        assert fewer["AutoAttack"].options["parts"] == ("apgd-ce", "square")
        assert "AutoAttack" not in named("full", **facts)
    random = named("full", with_autoattack=True)
    assert not {"APGD-T", "AutoAttack"} & random.keys()
    assert random["AutoAttack, noise known"].group == "cross-check"


def test_a_vote_is_one_draw_and_costs_as_many_passes_as_it_has():
    budget = BUDGETS["quick"]
    assert [budget.votes(num) for num in (1, 4, 8, 16)] == [8, 2, 1, 1]
    assert [budget.queries(num) for num in (1, 4, 16)] == [1600, 400, 200]
    assert configurations(num_samples=1) == configurations()
    single, votes, many = named(), named(num_samples=4), named(num_samples=16)
    for name in ("EOT-PGD", "FGSM", "low frequency", "vote", "BPDA", "Square"):
        assert (votes[name].num_draws, many[name].num_draws) == (2, 1)
        # As many passes per step, until one vote has more.
        own, other = (made[name].passes(num) * made[name].cost[0] for made, num in ((single, 1), (votes, 4)))
        assert own == other
    # 20 steps and two losses; 8 draws then hold no more than one vote of 16.
    assert many[HEADLINE].cost == (40, 4)
    assert many[HEADLINE].total_cost(budget, 16) == 16 * 84 + 2 * 16 * 19 + 2
    # Known noise: all draws of the vote; without noise there is nothing to vote.
    assert many[NOISE_KNOWN].total_cost(budget, 16) == 16 * 84 + 16 * 19
    assert many["EOT-PGD, sigma off"].total_cost(budget, 16) == 84 + 2 * 16 * 19 + 2
    # Passes stay half as large as --rows_per_pass.
    assert votes[HEADLINE].options["batch_size"] == 4 * 2
    assert many[HEADLINE].options["batch_size"] == 2
    assert many["EOT-PGD, sigma 0"].options["batch_size"] == 8
    with pytest.raises(ValueError, match="num_samples must be an int"):
        suite(num_samples=0)


def test_what_leaves_broken_images_out_is_no_reference():
    made = named(surrogates=["other"], further_attacks=["pgd"])
    left_out = {name for name, one in made.items() if one.skips_broken}
    adaptive = {"patch statistics", "vote", "low frequency"}
    assert left_out == {"EOT-APGD-CE", "EOT-APGD-DLR", "EOT-PGD, sigma 25", "Square", *adaptive}
    assert "skips_broken" not in made[HEADLINE].to_dict()
    assert made["vote"].to_dict()["skips_broken"]


@pytest.mark.parametrize(
    ("capabilities", "expected"), [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({}, "fp32")]
)
def test_attacks_search_in_the_precision_that_a_cpu_computes_in(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert fast_precision(torch.device("cpu")) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert fast_precision(torch.device("cpu")) == "fp32"


def test_without_bound_means_that_any_image_can_become_any_other():
    assert named()["EOT-PGD, unbounded"].eps == 255
    assert named(norm="L2", image_shape=(3, 2, 3))["EOT-PGD, unbounded"].eps == pytest.approx(255 * 18**0.5)
    assert max(one.eps for one in named(eps=200.0).values()) == 255


def test_other_libraries_attacks_see_one_image_at_a_time():
    made = named(further_attacks=["torchattacks_eotpgd"], with_autoattack=True)
    assert made["torchattacks_eotpgd, default options"].options["batch_size"] == 1
    assert made["AutoAttack, noise known"].options["batch_size"] == 1


def test_checks_take_fewer_images():
    made = named()
    assert made["EOT-PGD, unbounded"].num_images == BUDGETS["quick"].num_check_images
    assert made[HEADLINE].num_images == BUDGETS["quick"].num_images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": 0}, "eps must be positive"),
        ({"eps_grid": [-1]}, "got -1"),
        ({"eps": float("nan")}, "nan"),
        ({"eps_grid": [256.0]}, "at most 255 for Linf"),
    ],
)
def test_wrong_numbers(changes, message):
    with pytest.raises(ValueError, match=message):
        suite(**changes)
    with pytest.raises(ValueError, match="one of"):
        Suite("huge", BUDGETS["quick"], ModelFacts(None), eps=8)


def test_budget_is_checked():
    with pytest.raises(ValueError, match="num_evaluations must be an int of at least 11, got 10"):
        replace(BUDGETS["quick"], num_evaluations=10)
    with pytest.raises(ValueError, match="num_queries must be an int of at least 16"):
        replace(BUDGETS["quick"], num_queries=15)
    with pytest.raises(ValueError, match="steps must be an int"):
        AttackBudget(1, 1, 11, steps=1.5, num_draws=1, restarts=1, num_queries=2)


def test_each_norm_has_a_default_of_its_own(monkeypatch):
    told = []
    monkeypatch.setattr(geometry.logger, "warning_once", told.append)
    for norm, eps, grid in (("Linf", 8.0, [2.0, 4.0]), ("L2", 128.0, [32.0, 64.0])):
        options = EvaluationOptions(output_dir="outputs", norm=norm)
        assert (options.eps, options.radii) == (eps, grid)
        argv = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "outputs", "--norm", norm]
        assert parse_arguments(argv).options.eps == eps
    assert not told
    EvaluationOptions(output_dir="outputs", eps=0.031, eps_grid=[0.016])
    assert [text.split()[2] for text in told] == ["0.031/255", "0.016/255"]
