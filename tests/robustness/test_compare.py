# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
from dataclasses import replace

import numpy as np
import pytest
from fake_reports import BUDGET, attack, hand_made, simulated

from transformers_nim.robustness import compare, paired_difference
from transformers_nim.robustness.protocol import AttackConfiguration


def report(num_right, sigma=50.0, eps=8.0, num_images=20, **changes):
    """The first so many of the images are right under attack."""
    draws = 11 if sigma else 1
    clean = AttackConfiguration("clean", "clean", "none", 0.0, 100, sigma, (sigma,))
    attacked = [[int(index >= num_right)] * draws for index in range(num_images)]
    pgd = attack("EOT-PGD", sigmas=(sigma,), attack_sigma=sigma, eps=eps)
    attacks = [(clean, {sigma: [[0] * draws] * num_images}), (pgd, {sigma: attacked})]
    return hand_made([0] * num_images, attacks, sigma=sigma, sigmas=[sigma], eps=eps, **changes)


def lines_of(text):
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    return {row[0].strip(): [part.strip() for part in row[1:]] for row in rows}


def moved(one, offset=0, names="other"):
    """The same report of other images."""
    images = [{**image, "image": f"{names}{index + offset}"} for index, image in enumerate(one.images)]
    return replace(one, images=images)


def test_the_same_images_are_paired():
    text = compare(report(15), report(10))
    line = lines_of(text)["EOT-PGD"]
    right = np.arange(20)[:, None] < [[15, 10]]
    expected = paired_difference(right[:, :1].repeat(11, 1), right[:, 1:].repeat(11, 1))
    assert line[:2] == ["sigma 50", "20"]
    assert line[2].startswith("75.0 [")
    assert line[3].startswith("50.0 [")
    # Five of 20 images differ, which has a standard error of 9.7 points.
    assert line[4] == str(expected) == "+25.0 [+4.9, +46.9]"
    assert "strongest of 1" in lines_of(text)
    assert "Paired differences over the 20 images that are in both" in text
    assert "Settings that differ" not in text


def test_only_common_images_are_compared():
    """Ten images are in both: the last of `a`, the first of `b`."""
    a, b = moved(report(15), names="h"), moved(report(5), offset=10, names="h")
    line = lines_of(compare(a, b))["EOT-PGD"]
    # Of images 10 to 19 `a` is right on 5, and `b` on its first 5: the same ones.
    assert line[1] == "10"
    assert line[2].startswith("50.0 [")
    assert line[3].startswith("50.0 [")
    assert line[4].startswith("+0.0 [")
    assert "(of 20 and 20; accuracies are those of the common ones)" in " ".join(compare(a, b).split())


def test_other_images_are_not_paired_and_other_data_is_refused():
    a, b = report(15), moved(report(10))
    text = compare(a, b)
    assert "No image is in both (20 and 20 images): differences are not paired" in " ".join(text.split())
    low = float(lines_of(text)["EOT-PGD"][4].split("[")[1].split(",")[0])
    # 0.25 - sqrt(0.2^2 + 0.2^2), where paired it is +5.
    assert low == pytest.approx(-3.3, abs=1.5)
    with pytest.raises(ValueError, match=r"of digits \(test\) and letters \(test\), and no image is in both"):
        compare(a, replace(b, settings={**b.settings, "dataset": "letters"}))
    # A copy under another name.
    assert "Paired" in compare(a, replace(report(10), settings={**b.settings, "dataset": "copies"}))


def test_other_attacks_are_not_compared():
    with pytest.raises(ValueError, match="accuracies under Linf and under L2 cannot be compared"):
        compare(report(15), report(10, norm="L2"))
    with pytest.raises(ValueError, match="no attack is in both reports with the same eps"):
        compare(report(15), report(10, eps=4.0))
    changed = simulated(eps_grid=(2.0,))
    square = [{**one, "gradient": "bpda"} if one["name"] == "Square" else one for one in changed.cells]
    text = compare(simulated(), replace(changed, cells=square))
    assert "Square" not in lines_of(text)
    assert "- Square is not compared: gradient is 'full' and 'bpda'" in text


def test_settings_that_differ_are_listed():
    a = simulated()
    b = simulated(budget=replace(BUDGET, steps=10), model="outputs/other")
    lines = lines_of(compare(a, replace(b, versions={"transformers_nim": "0.2.0"})))
    assert lines["budget, steps"] == ["20", "10"]
    assert lines["model"] == ["outputs/quickstart", "outputs/other"]
    assert lines["version, transformers_nim"] == ["0.1.0", "0.2.0"]
    assert "seed" not in lines


def test_main_sigmas_of_two_models_are_compared():
    """Without a defense against with one: each at its own."""
    line = lines_of(compare(report(15), report(10, sigma=None)))["EOT-PGD"]
    assert line[0] == "sigma 50 / off"
    assert line[4].startswith("+25.0")


def test_each_common_sigma_is_compared_where_the_attack_is_the_same():
    def rows(text, name):
        return [line.split("|")[2].strip() for line in text.splitlines() if line.startswith(f"| {name} ")]

    a = simulated(sigmas=(None, 25.0))
    same = compare(a, simulated(sigmas=(None, 25.0), seed=1))
    assert rows(same, "EOT-PGD") == rows(same, "clean") == ["sigma 50", "off", "sigma 25"]
    assert rows(same, "EOT-PGD, sigma 25") == ["off", "sigma 25", "sigma 50"]
    # There the attack of that name is made for sigma 25.
    other = compare(a, simulated(sigma=25.0, sigmas=(None, 50.0)))
    assert rows(other, "EOT-PGD") == ["sigma 50 / sigma 25"]
    assert rows(other, "clean") == ["sigma 50 / sigma 25", "off", "sigma 25", "sigma 50"]


def test_the_result_comes_first():
    text = compare(report(15), report(10))
    assert [*lines_of(text)][2] == "strongest of 1"
    first = " ".join(text.split("\n\n")[0].split())
    line = lines_of(text)["strongest of 1"]
    figures = f"({line[2]} and {line[3]} %, difference {line[4]})"
    assert first.startswith(f"Under the strongest attack a is better {figures};")
    assert "without an attack a and b cannot be told apart (100.0 [" in first
    assert compare(report(10), report(15)).startswith("Under the strongest attack b is better (")
