# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import functools
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from conftest import save_with_processor, tiny_model


pytest.importorskip("torchattacks")


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "eot_pgd.py"
    spec = importlib.util.spec_from_file_location("eot_pgd_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_do_the_same_work(benchmark, tmp_path, monkeypatch):
    model = tiny_model()
    save_with_processor(model, tmp_path / "model")
    seen: dict[bool, int] = {}
    forward = benchmark.NIMForRobustImageClassification.forward

    @functools.wraps(forward)
    def count(self, pixel_values, *args, **kwargs):
        ours = "generator" in kwargs
        if torch.is_grad_enabled():
            seen[ours] = seen.get(ours, 0) + len(pixel_values) * (kwargs.get("num_samples") or 1)
        return forward(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(benchmark.NIMForRobustImageClassification, "forward", count)
    results = benchmark.main(
        ["--model_name_or_path", str(tmp_path / "model"), "--num_images", "4", "--steps", "2", "--num_draws", "3",
         "--rows_per_pass", "6", "--repetitions", "1", "--output_dir", str(tmp_path / "out")]
    )  # fmt: skip
    # torchattacks runs once more, to warm up.
    assert seen == {True: 4 * 2 * 3, False: 2 * 4 * 2 * 3}
    assert json.loads((tmp_path / "out" / "eot_pgd.json").read_text()) == results
    assert [row["name"] for row in results["rows"]] == ["torchattacks EOTPGD", "ours, 6 rows per pass"]
    assert results["rows"][0]["ratio"] == 1.0


def test_ratio_is_their_time_over_ours(benchmark):
    rows = benchmark.summarize({"torchattacks EOTPGD": [2.0, 4.0, 6.0], "ours": [1.0, 1.0, 2.0]}, num_rows=10)
    assert rows[1]["ratio"] == 3.0
    assert rows[1]["spread"] == [2.5, 3.5]
    assert rows[1]["noisy_images_per_second"] == 10.0
