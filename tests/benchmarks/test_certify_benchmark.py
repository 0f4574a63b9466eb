# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The benchmark of certificates runs, and its ratios are those of its runs."""

import importlib.util
import json
from pathlib import Path

import pytest
from conftest import random_picture


datasets = pytest.importorskip("datasets")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "certify.py"


def test_it_compares_procedures_in_one_run(robust_path, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("certify_benchmark", SCRIPT)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [random_picture(seed) for seed in range(5)], "label": [0, 1, 0, 1, 0]}
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(tmp_path / "data")
    arguments = ["--model_name_or_path", robust_path, "--dataset_name", str(tmp_path / "data"), "--sigma", "20"]
    small = ["--max_eval_samples", "2", "--n0", "10", "--n", "200", "--batch_size", "64", "--repetitions", "2"]
    results = benchmark.main([*arguments, *small, "--output_dir", str(tmp_path)])
    assert json.loads((tmp_path / "certify.json").read_text()) == results
    names = list(benchmark.procedures(20))
    # Interleaved: every image by every procedure in turn.
    order = [(repetition, row, name) for repetition in (0, 1) for row in (0, 4) for name in names]
    assert [(run["repetition"], run["row"], run["procedure"]) for run in results["runs"]] == order
    summary = results["summary"]
    assert (summary["plain"]["num_draws"], summary["plain"]["num_passes"]) == (210, 5)
    assert (summary["plain"]["speedup"], summary["plain"]["max_radius_lost"]) == (1, 0)
    target = [run for run in results["runs"] if run["procedure"] == "sequential, target 1 sigma"]
    lost = [results["runs"][index]["radius"] - run["radius"] for index, run in zip(range(0, 20, 5), target)]
    assert summary["sequential, target 1 sigma"]["max_radius_lost"] == max(lost) > 0
    assert "speed-up" in capsys.readouterr().out
