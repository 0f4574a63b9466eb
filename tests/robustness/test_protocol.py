# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
from dataclasses import replace

import pytest

from transformers_nim.attacks import make_attack
from transformers_nim.robustness.protocol import (
    CLEAN,
    HEADLINE,
    NOISE_KNOWN,
    STRENGTHS,
    Strength,
    make_suite,
    sigma_key,
)


def suite(name="quick", **changes):
    options = {"eps": 8, "sigma": 50.0, "sigmas": [None, 0.0, 25.0], "eps_grid": [2.0, 4.0], "num_labels": 10}
    return make_suite(name, STRENGTHS[name], **{**options, **changes})


def named(cells):
    return {cell.name: cell for cell in cells}


def test_names_are_unique_and_clean_images_come_first():
    for name in STRENGTHS:
        cells = suite(name, sources=["undefended"], further_attacks=["torchattacks_eotpgd", "vote"])
        assert len(named(cells)) == len(cells)
        assert cells[0].name == CLEAN
        assert cells[0].defense_sigmas == (50.0, None, 0.0, 25.0)


def test_attacks_exist_and_take_their_options():
    for name in STRENGTHS:
        for cell in suite(name, sources=["undefended"], autoattack=True):
            needed = {"source": None} if cell.source else {}
            make_attack(cell.attack, **cell.options, **needed)


def test_quick_crosses_two_lines_and_full_fills_the_grid():
    def grid(cells):
        own = [c for c in cells if c.attack == "eot_pgd" and c.group in ("white-box", "grid") and not c.fixed_noise]
        return {(cell.eps, cell.attack_sigma) for cell in own}

    line = {(8, 50.0), (8, None), (8, 0.0), (8, 25.0), (2.0, 50.0), (4.0, 50.0)}
    assert grid(suite("quick")) == line
    sigmas = (50.0, None, 0.0, 25.0)
    assert grid(suite("full")) == {(eps, sigma) for eps in (8, 2.0, 4.0) for sigma in sigmas}


def test_the_main_attack_is_as_strong_as_the_protocol_says():
    options = named(suite("full"))[HEADLINE].options
    assert options == {"steps": 100, "num_draws": 20, "restarts": 3, "batch_size": 60}
    # 100 steps, 20 draws, 3 restarts with each of two losses.
    assert named(suite("full"))[HEADLINE].cost == (12_000, 240)
    assert STRENGTHS["full"].num_evaluations >= 32
    assert STRENGTHS["quick"].num_evaluations >= 11


def test_known_noise_and_the_bare_classifier_need_one_draw():
    cells = named(suite())
    assert cells[NOISE_KNOWN].cost == (40, 4)
    assert cells["EOT-PGD, sigma off"].cost == (40, 4)
    assert cells["EOT-PGD, sigma 25"].cost == (320, 32)
    assert cells["EOT-PGD, sigma off"].defense_sigmas == (50.0, None, 0.0, 25.0)


def test_a_model_without_a_defense_has_no_cells_of_one():
    cells = named(suite(sigma=None, sigmas=[]))
    assert {cell.attack_sigma for cell in cells.values()} == {None}
    assert not {"BPDA", NOISE_KNOWN, "patch statistics", "vote"} & cells.keys()


def test_two_classes_have_no_dlr_loss():
    assert "EOT-APGD-DLR" not in named(suite(num_labels=2))
    assert "EOT-APGD-DLR" in named(suite(num_labels=3))


def test_without_bound_means_that_any_image_can_become_any_other():
    assert named(suite())["EOT-PGD, unbounded"].eps == 255
    assert named(suite(norm="L2", image_shape=(3, 2, 3)))["EOT-PGD, unbounded"].eps == pytest.approx(255 * 18**0.5)


def test_other_libraries_attacks_see_one_image_at_a_time():
    cells = named(suite(further_attacks=["torchattacks_eotpgd"], autoattack=True))
    assert cells["torchattacks_eotpgd, default options"].options["batch_size"] == 1
    assert cells["AutoAttack, noise known"].options["batch_size"] == 1


def test_checks_take_fewer_images():
    cells = named(suite())
    assert cells["EOT-PGD, unbounded"].num_images == STRENGTHS["quick"].num_check_images
    assert cells[HEADLINE].num_images == STRENGTHS["quick"].num_images


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"eps": 0}, "eps must be positive"), ({"eps_grid": [-1]}, "got -1"), ({"eps": float("nan")}, "nan")],
)
def test_wrong_numbers(changes, message):
    with pytest.raises(ValueError, match=message):
        suite(**changes)
    with pytest.raises(ValueError, match="one of"):
        make_suite("huge", STRENGTHS["quick"], eps=8, sigma=None)


def test_strength_is_checked():
    with pytest.raises(ValueError, match="num_evaluations must be an int of at least 11, got 10"):
        replace(STRENGTHS["quick"], num_evaluations=10)
    with pytest.raises(ValueError, match="num_queries must be an int of at least 16"):
        replace(STRENGTHS["quick"], num_queries=15)
    with pytest.raises(ValueError, match="steps must be an int"):
        Strength(1, 1, 11, steps=1.5, num_draws=1, restarts=1, num_queries=2)


def test_keys_of_sigmas():
    assert [sigma_key(sigma) for sigma in (None, 0, 25.0, 12.5)] == ["off", "0", "25", "12.5"]
