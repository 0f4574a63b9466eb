# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
from dataclasses import replace

import pytest
from fake_reports import simulated

from transformers_nim.robustness import model_table


def rows_of(text):
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line)) for line in lines[2:]]


def named(name, **changes):
    report = simulated(**{"sigmas": (None, 0.0), "model": name, "model_hash": name, **changes})
    return replace(report, checks=[])


def test_a_row_per_model_with_the_highest_robust_accuracy_first():
    reports = [named("a"), named("b", sigma=None, sigmas=(), num_parameters=3_210_000), named("c", num_samples=16)]
    rows = rows_of(model_table(reports))
    robust = {one.settings["model"]: one.strongest(one.settings["sigma"]).row for one in reports}
    assert [row["model"] for row in rows] == sorted(robust, key=lambda one: -robust[one].accuracy.mean)
    by_name = {row["model"]: row for row in rows}
    for report in reports:
        name, sigma = report.settings["model"], report.settings["sigma"]
        assert by_name[name]["clean"] == str(report.row("clean", sigma).accuracy)
        assert by_name[name]["robust"] == str(robust[name].accuracy)
    known = str(reports[0].row("EOT-PGD, noise known", 50.0).accuracy)
    assert (by_name["a"]["worst of 10"], by_name["a"]["noise known"]) == (str(robust["a"].worst_of_10), known)
    assert (by_name["b"]["worst of 10"], by_name["b"]["noise known"], by_name["b"]["sigma"]) == (
        "-",
        "-",
        "no defense",
    )
    assert by_name["b"]["architecture"] == "NIMForRobustImageClassification, 3.2 M parameters"
    assert (by_name["c"]["vote"], by_name["c"]["forward passes"], by_name["a"]["vote"]) == ("mean of 16", "16", "-")
    assert by_name["a"]["threat model"] == "Linf 8/255"
    assert by_name["a"]["images"] == "40 of digits (test)"
    # What no model has is no column.
    assert not {"AutoAttack", "certified"} & rows[0].keys()
    with pytest.raises(ValueError, match="at least one report"):
        model_table([])


def test_certificates_and_extra_data_belong_to_a_model():
    def curve(sigma, accuracies):
        ends = {f"certified_accuracy_{end}": [0.5] * 3 for end in ("low", "high")}
        return {"sigma": sigma, "radii": [0, 0.25, 0.5], "certified_accuracy": accuracies, **ends}

    certificates = [
        {"settings": {"model_hash": "a"}, "curves": [curve(30.0, [0.7, 0.55, 0]), curve(60.0, [0.6, 0.58, 0.4])]}
    ]
    text = model_table([named("a"), named("b")], certificates, {"b": "imagenet"})
    by_name = {row["model"]: row for row in rows_of(text)}
    assert by_name["a"]["certified"] == "58.0 [50.0, 50.0], L2 0.25, sigma 60"
    assert by_name["b"]["certified"] == "-"
    assert (by_name["a"]["extra data"], by_name["b"]["extra data"]) == ("?", "imagenet")
    assert "Not all rows are of the same images" not in text
    images = [{**image, "image": "other"} for image in named("b").images]
    assert "Not all rows are of the same images" in model_table([named("a"), replace(named("b"), images=images)])


def test_a_failed_check_makes_an_upper_limit_and_chance_no_figure():
    failed = replace(named("a"), checks=[{"name": "monotone", "passed": False, "detail": ""}])
    chance = named("b")
    images = [{**image, "label": (image["label"] + 1) % 10} for image in chance.images]
    rows = {row["model"]: row for row in rows_of(model_table([failed, replace(chance, images=images)]))}
    robust = failed.strongest(50.0).row.accuracy.mean
    assert rows["a"]["robust"] == f"at most {100 * robust:.1f}"
    assert (rows["b"]["robust"], rows["b"]["worst of 10"]) == ("-", "-")
