# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The benchmark of attacks in bfloat16 attacks alike in both precisions, and judges both in float32."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_picture


datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "gradient_precision.py"
    spec = importlib.util.spec_from_file_location("gradient_precision_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_precisions_meet_the_same_and_are_judged_in_fp32(benchmark, robust_path, tmp_path, monkeypatch, capsys):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=5)})
    rows = {"image": [random_picture(seed) for seed in range(8)], "label": [0, 1, 2, 3, 4, 0, 1, 2]}
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(tmp_path / "data")
    judged, searched = [], []
    make_attack, correct_draws = benchmark.make_attack, benchmark.correct_draws

    def spy_on_attack(name, **options):
        attack = make_attack(name, **options)

        def run(classifier, pixels, labels, **settings):
            if name == "eot_pgd":
                searched.append((classifier.autocast_dtype, len(pixels), tuple(settings["seeds"])))
            return attack(classifier, pixels, labels, **settings)

        return run

    def spy_on_judge(classifier, pixels, *more):
        judged.append((classifier.autocast_dtype, pixels))
        return correct_draws(classifier, pixels, *more)

    monkeypatch.setattr(benchmark, "make_attack", spy_on_attack)
    monkeypatch.setattr(benchmark, "correct_draws", spy_on_judge)
    results = benchmark.main(
        ["--model_name_or_path", robust_path, "--dataset_name", str(tmp_path / "data"), "--labels_by_index",
         "--max_eval_samples", "6", "--sigma", "20", "60", "--steps", "2", "--num_draws", "2", "--rows_per_pass", "4",
         "--num_evaluations", "5", "--eps", "1", "--output_dir", str(tmp_path)]
    )  # fmt: skip
    assert json.loads((tmp_path / "gradient_precision.json").read_text()) == results
    assert {dtype for dtype, _ in judged} == {None}
    assert len(judged) == 2 * 3
    fp32, bf16 = ([call[1:] for call in searched if call[0] == dtype] for dtype in (None, torch.bfloat16))
    assert fp32 == bf16
    assert len(fp32) > 1
    # Whoever comes first alternates, within a sigma.
    assert [call[0] for call in searched[-4:]] == [None, torch.bfloat16, torch.bfloat16, None]
    for number, row in enumerate(results["summary"]):
        runs = [run for run in results["runs"] if run["sigma"] == row["sigma"]]
        assert len(runs) == row["images"] == 6
        assert row["attacked"] == sum(run["clean"] > 0 for run in runs)
        for name in ("fp32", "bf16"):
            assert row["accuracy"][name]["mean"] == pytest.approx(np.mean([run[name] for run in runs]))
        difference = np.mean([run["bf16"] - run["fp32"] for run in runs])
        assert row["difference"]["mean"] == pytest.approx(difference)
        # What was found differs, and lies in the ball.
        clean, *found = (pixels for _, pixels in judged[3 * number : 3 * number + 3])
        assert not torch.equal(*found)
        assert max((one - clean).abs().max() for one in found) <= 1 / 255 + 1e-6
    assert "bf16 - fp32" in capsys.readouterr().out


def test_difference_is_bf16_less_fp32(benchmark):
    right, wrong = np.ones((4, 5), dtype=bool), np.zeros((4, 5), dtype=bool)
    row = benchmark.summarize(25.0, right, {"fp32": wrong, "bf16": right}, {"fp32": [3.0, 1.0], "bf16": [1.0, 1.0]})
    assert row["difference"]["mean"] == 1.0
    assert row["difference"]["low"] > 0
    assert not row["includes_zero"]
    assert row["speedup"] == 2.0
