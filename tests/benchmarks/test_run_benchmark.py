# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks compare equal work, in turns, and say what they measured."""

import inspect
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from functools import partial, wraps
from pathlib import Path

import pytest
import torch
from conftest import tiny_config, tiny_model

from transformers_nim import NIMConfig, NIMForPreTraining, NIMForRobustImageClassification


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    # Also for the measured processes, which are started with this process's path.
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import cases

    # There would be no way back for the other tests of this process.
    monkeypatch.setattr(cases, "keep_freed_memory", lambda: True)


def test_the_plain_denoiser_is_ours():
    import plain

    torch.manual_seed(0)
    model = NIMForPreTraining(NIMConfig.from_size("tiny-patch4-32", num_hidden_layers=2))
    pixel_values, noise = torch.randn(2, 3, 3, 32, 32)
    other = plain.PlainNIM(model)
    loss = model(pixel_values, sigma=40.0, pixel_noise=noise).loss
    other_loss = other.loss(pixel_values, noise, 40.0)
    torch.testing.assert_close(other_loss, loss)
    loss.backward()
    other_loss.backward()
    torch.testing.assert_close(
        other.encoder.patches.weight.grad, model.nim.embeddings.patch_embeddings.projection.weight.grad
    )
    torch.testing.assert_close(
        other.denoise(pixel_values, noise, 40.0), model.denoise(pixel_values, sigma=40.0, pixel_noise=noise)
    )


def test_the_plain_defense_is_ours():
    import plain

    model = tiny_model()
    torch.nn.init.normal_(model.classifier.weight)
    pixel_values, noise = torch.randn(2, 3, 32, 32), torch.randn(2, 4, 3, 32, 32)
    ours = model(pixel_values, sigma=60.0, pixel_noise=noise, num_samples=4, vote="mean").logits.softmax(dim=-1)
    assert ours.std() > 0.01
    torch.testing.assert_close(plain.PlainDe3(model)(pixel_values, noise, 60.0), ours)


def test_the_plain_denoiser_refuses_what_it_does_not_know():
    import plain

    with pytest.raises(ValueError, match="norm_pix_loss=False"):
        plain.PlainNIM(NIMForPreTraining(tiny_config(norm_pix_loss=True)))


def test_two_ways_are_timed_in_processes_of_their_own():
    import measure
    import toy_cases

    ours, other = partial(toy_cases.pause, 0.02), partial(toy_cases.pause, 0.06)
    steps = []
    row = measure.compare(ours, other, 3, lambda: steps.append(1))
    assert len(steps) == 3
    low, high = row["spread"]
    assert 1 < low <= row["ratio"] <= high
    assert row["seconds"]["ours"] >= 0.02
    assert row["seconds"]["alternative"] >= 0.06
    assert (row["items"], row["flops"]) == (4, 5.0)
    assert row["peak_memory_mb"]["ours"] > 50
    assert row["cost_ratio"] == pytest.approx(3)
    assert multiprocessing.active_children() == []


def test_one_way_is_timed_in_a_process_of_its_own():
    import measure
    import toy_cases

    report = measure.measure_alone(partial(toy_cases.pause, 0.02), 2, num_threads=3)
    assert report["seconds"] >= 0.02
    assert report["facts"]["threads"] == 3
    assert report["facts"]["process"] != os.getpid()


@pytest.mark.slow
def test_models_are_timed_in_processes_of_their_own():
    import cases
    import measure

    predict = partial(cases.prediction, size="tiny-patch4-32", num_images=2, num_draws=2, precision="fp32")
    row = measure.compare(partial(predict, side="ours"), partial(predict, side="plain"), 3)
    low, high = row["spread"]
    assert 0 < low <= row["ratio"] <= high
    assert row["items"] == 4
    assert row["peak_memory_mb"]["ours"] > 100
    assert row["flops"] == predict(side="ours").flops


def test_operations_of_a_prediction():
    import cases

    work = cases.prediction("tiny-patch4-32", 2, 2, "ours", "fp32")
    # Two encoders of six layers of width 192 and a decoder of two of width 128, over 65 tokens.
    tokens, encoder, decoder = 65, 192, 128
    layers = 2 * tokens * (2 * 6 * 12 * encoder**2 + 2 * 12 * decoder**2)
    attention = 4 * tokens**2 * (2 * 6 * encoder + 2 * decoder)
    ends = 2 * 64 * 2 * 48 * encoder + 2 * 65 * (encoder * decoder + decoder * 48) + 2 * encoder * 10
    assert work.flops == pytest.approx(4 * (layers + attention + ends), rel=1e-3)


@pytest.mark.parametrize("side", ["ours", "plain", "plain batch"])
def test_every_side_predicts(side):
    import cases

    work = cases.prediction("tiny-patch4-32", 1, 2, side, "fp32")
    work.run()
    assert work.items == 2


def test_certificates_are_compared_by_their_passes(monkeypatch):
    import cases

    def cost(side):
        work = cases.certification("tiny-patch4-32", 1, 1000, side)
        work.run()
        return work.facts["cost"]

    ours = cost("ours")
    # A model that answers at once, since the other side takes all draws: 100 to choose the class, and 1,000.
    model = tiny_model()
    with torch.no_grad():
        model.classifier.bias[1] += 1000
    monkeypatch.setattr(cases, "_robust", lambda size: model)
    assert cost("fixed n") == 1100 >= 5 * ours
    assert cost("ours") == ours


def test_a_failing_case_is_reported_and_ends_the_other_process_too():
    import measure
    import toy_cases

    with pytest.raises(RuntimeError, match="fail: ValueError: no such size"):
        measure.compare(partial(toy_cases.pause, 0.02), partial(toy_cases.fail, "no such size"), 1)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("side", ["ours", "fused"])
def test_attention_of_both_sides(side):
    import cases

    work = cases.attention(2, 5, side)
    work.run()
    assert work.flops == 3 * 2 * (2 * 2 * 12 * 5 * 5 * 64)


@pytest.mark.parametrize("side", ["ours", "plain", "vit_mae"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_side_trains(side, precision):
    import cases

    work = cases.training_step("tiny-patch4-32", 2, side, precision, {"num_hidden_layers": 1})
    assert work.items == 2
    work.run()
    assert (work.flops > 0) == (side == "ours")


def test_attacks_of_both_sides_do_the_same_work(monkeypatch):
    import cases

    pytest.importorskip("torchattacks")
    seen = []
    forward = NIMForRobustImageClassification.forward

    @wraps(forward)
    def count(self, pixel_values, *args, **kwargs):
        seen.append(len(pixel_values) * kwargs["num_samples"])
        return forward(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(NIMForRobustImageClassification, "forward", count)
    for side, passes in (("ours", [4, 4]), ("torchattacks", [4, 4])):
        work = cases.eot_step("tiny-patch4-32", 4, 2, side, batch_size=5)
        seen.clear()
        work.run()
        assert seen == passes
        assert work.items == 8


def test_attacks_that_would_be_filled_up_are_refused():
    import cases

    with pytest.raises(ValueError, match="6 noisy images do not fill groups of 4"):
        cases.eot_step("tiny-patch4-32", 3, 2, "ours", batch_size=5)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells")
def test_peak_memory_is_that_of_the_work():
    code = (
        "import measure, torch; measure._forget_peak_memory(); before = measure._peak_memory_mb();"
        " torch.ones(100, 2**20); during = measure._peak_memory_mb();"
        " measure._forget_peak_memory(); print(during - before, measure._peak_memory_mb() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=True)
    during, after = map(int, done.stdout.split())
    assert during == pytest.approx(400, abs=20)
    assert after < 20


@pytest.mark.parametrize(("slow", "sizes"), [(None, 4), ("bfloat16", 1)])
def test_products_that_are_emulated_are_tried_in_one_size(monkeypatch, slow, sizes):
    import measure

    clock, seen = [0.0], []

    def multiply(left, right, out):
        dtype = str(left.dtype).removeprefix("torch.")
        seen.append((dtype, len(left)))
        operations = 2 * left.shape[0] * left.shape[1] * right.shape[1]
        clock[0] += operations / (1e8 if dtype == slow else 1e11)

    monkeypatch.setattr(torch, "mm", multiply)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    peaks = measure.matmul_peaks()
    assert peaks == pytest.approx({"float32": 1e11, "bfloat16": 1e8 if slow else 1e11})
    assert len({size for dtype, size in seen if dtype == "float32"}) == 4
    assert len({size for dtype, size in seen if dtype == "bfloat16"}) == sizes


def test_exponents():
    import measure

    assert measure.fit_exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)


def test_results_say_what_was_measured(tmp_path, monkeypatch, capsys):
    import run

    seconds = {"bf16": 1.0, "fp32": 2.0}

    def compare(ours, other, repetitions, on_step):
        own = seconds[ours.keywords["precision"]]
        pairs = {"ours": own, "alternative": 3.0}
        memory = {"ours": 10, "alternative": 20}
        return {"ratio": 3.0 / own, "spread": [1.0, 4.0], "seconds": pairs, "items": 256, "flops": 5e9,
                "peak_memory_mb": memory}  # fmt: skip

    monkeypatch.setattr(run, "compare", compare)
    monkeypatch.setattr(run, "matmul_peaks", lambda: {"float32": 1e10, "bfloat16": 2e10})
    output = tmp_path / "new" / "results.json"
    results = run.main(["--quick", "--only", "training", "--output", str(output)])
    assert json.loads(output.read_text()) == results
    rows = results["rows"]
    # The large model is left out.
    assert all("tiny-patch4-32" in row["name"] for row in rows)
    assert [(row["alternative"], row["ratio"], row["goal"], row["is_met"]) for row in rows] == [
        ("plain fp32, memory not kept", 3.0, 2.4, True),
        ("ours, memory not kept", 1.5, 1.0, True),
        ("plain fp32", 1.5, 1.15, True),
        ("plain bf16", 3.0, 1.15, True),
        ("ViT-MAE fp32", 1.5, 1.0, True),
        ("ViT-MAE bf16", 3.0, 1.0, True),
        ("ViT-MAE bf16, eager", 3.0, 1.0, True),
    ]
    assert [row["share_of_peak"] for row in rows[:2]] == [0.25, 0.25]
    assert rows[0]["items_per_second"] == 256
    printed = capsys.readouterr().out
    assert "| training step, tiny-patch4-32, batch 256, bf16 |" in printed
    assert "2.40 met" in printed

    seconds["bf16"] = 2.0
    results = run.main(["--quick", "--only", "training", "--output", str(output)])
    assert results["rows"][0]["is_met"] is False
    assert "2.40 missed" in capsys.readouterr().out


def test_all_cases_of_all_rows_exist(tmp_path):
    import run

    rows = [
        *run.training_rows(),
        *run.attention_rows(),
        *run.prediction_rows(),
        *run.attack_rows(),
        *run.certification_rows(False),
    ]
    rows += [*run.data_rows(tmp_path), *run.loading_rows(tmp_path)]
    assert {row.group for row in rows} | {"scaling", "passes", "processes"} == set(run.GROUPS)
    for row in rows:
        for case in (row.ours, row.other):
            inspect.signature(case.func).bind(*case.args, **case.keywords)
            # As a measured process receives it.
            received = pickle.loads(pickle.dumps(case))
            assert (received.func, received.keywords) == (case.func, case.keywords)


def test_what_is_no_comparison_is_shown_too(tmp_path, monkeypatch, capsys):
    import run
    import scaling

    # Twice the work takes twice the time, and large passes are faster.
    def measure_alone(case, repetitions):
        arguments = case.keywords
        if "max_batch_size" in arguments or case.func.__name__ == "eot_step":
            passes = arguments.get("max_batch_size", arguments.get("batch_size"))
            return {"seconds": 10.0 / passes, "items": 100}
        return {"seconds": float(arguments.get("num_draws", arguments.get("batch_size"))), "items": 1}

    monkeypatch.setattr(scaling, "measure_alone", measure_alone)
    monkeypatch.setattr(run, "matmul_peaks", lambda: {"float32": 1e10, "bfloat16": 2e10})
    results = run.main(["--only", "scaling", "passes", "--output", str(tmp_path / "results.json")])
    exponents = {row["name"]: row["exponent"] for row in results["scaling"]}
    assert exponents["batch, training step"] == pytest.approx(1)
    assert exponents["draws, De^3 of 1 image"] == pytest.approx(1)
    assert exponents["parameters, training step of 64"] == pytest.approx(0)
    assert results["passes"][0]["images_per_second"] == pytest.approx([200, 600, 1200, 2400])
    printed = capsys.readouterr().out
    assert "| draws, De^3 of 1 image " in printed
    assert "| EOT step, fp32 " in printed


def test_wrong_arguments(tmp_path):
    import run

    with pytest.raises(ValueError, match="repetitions must be an int of at least 1, got 0"):
        run.main(["--repetitions", "0", "--output", str(tmp_path / "r.json")])
