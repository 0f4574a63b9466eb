# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The robustness evaluation as a user runs it: figures, two processes, a killed run that goes on, a time budget."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
import training_runs
from PIL import Image
from training_runs import TINY, digit_pictures, digits_dataset
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from transformers_nim import NIMConfig, NIMForRobustImageClassification, NIMImageProcessor
from transformers_nim.robustness import RobustnessReport, evaluate_robustness, evaluation, render, runner
from transformers_nim.robustness.protocol import HEADLINE
from transformers_nim.utils.cli import run_command
from transformers_nim.utils.interruption import postpone_signals, release_signals


datasets = pytest.importorskip("datasets")
pytest.importorskip("accelerate")
SMALL = ["--steps", "2", "--num_draws", "2", "--num_queries", "8", "--num_check_images", "2",
         "--max_eval_samples", "5", "--eps", "48", "--eps_grid", "16", "--sigma", "40", "--sigmas", "0",
         "--labels_by_index", "--seed", "3"]  # fmt: skip


def fitted_head(model, pixel_values, labels):
    """Gives a random model a head that gets its training images right, by least squares."""
    with torch.no_grad():
        features = model(pixel_values, sigma=0, output_hidden_states=True, output_draws=True)
        pooled = model.fc_norm(features.hidden_states[-1][:, 1:].mean(dim=1))
        targets = torch.nn.functional.one_hot(labels, 10).float() * 10 - 1
        design = torch.cat([pooled, torch.ones(len(pooled), 1)], dim=1)
        solution = torch.linalg.lstsq(design, targets, driver="gelsd").solution
        model.classifier.weight.copy_(solution[:-1].T)
        model.classifier.bias.copy_(solution[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of digits, and a random De^3 model that knows some of them."""
    path = tmp_path_factory.mktemp("evaluate")
    datasets.DatasetDict({"test": digits_dataset(40)}).save_to_disk(path / "data")
    torch.manual_seed(0)
    model = NIMForRobustImageClassification(NIMConfig(**TINY, num_labels=10)).eval()
    processor = NIMImageProcessor.from_config(model.config)
    pictures, labels = digit_pictures()
    fitted_head(model, processor(pictures[:200], return_tensors="pt")["pixel_values"], torch.tensor(labels[:200]))
    model.save_pretrained(path / "model")
    processor.save_pretrained(path / "model")
    return path


def arguments(folder, *more):
    return ["--model_name_or_path", folder / "model", "--dataset_name", folder / "data", *SMALL, *more]


@pytest.fixture(autouse=True, scope="module")
def in_float32():
    """Let attacks search in float32 unless a test asks for bfloat16, whatever the CPU computes in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "fast_precision", lambda device: "fp32")
        yield


def run(*options):
    return training_runs.main("evaluate_robustness", *options)


@pytest.fixture(scope="module")
def finished(folder):
    out = folder / "one"
    return run(*arguments(folder, "--output_dir", out)), out


def timeless(report):
    """What must not differ from run to run."""
    data = report.to_dict() if isinstance(report, RobustnessReport) else json.loads(report.read_text())
    records = [{k: v for k, v in record.items() if k != "seconds"} for record in data["records"]]
    return {**data, "records": records, "wall_time": None, "versions": {**data["versions"], "threads": None}}


def test_results_table_and_pictures(finished, folder, capsys):
    report, out = finished
    assert RobustnessReport.load(out) == report
    clean = report.correct("clean", 40.0)
    assert clean.shape == (5, 11)
    assert 0.2 < clean.mean() < 1
    assert report.correct("EOT-PGD, unbounded", 40.0).mean() < clean[:2].mean()
    for record in report.records:
        cell = report.configuration(record["cell"])
        assert record["distance"] <= cell.eps / 255 + 1e-6
    for name in ("tradeoff", "eps_curve", "examples"):
        picture = np.asarray(Image.open(out / f"{name}.png").convert("RGB")).reshape(-1, 3)
        assert len(np.unique(picture, axis=0)) > 20
    table = render(report)
    for text in (HEADLINE, "BPDA", "patch statistics", "Square", "sigma 40", "off", "n.a.", "none was given"):
        assert text in table
    assert {check["name"] for check in report.checks} >= {"the attack raises the loss"}
    assert report.settings["model"] == "model"
    assert str(folder) not in (out / "results.json").read_text()
    assert report.settings["model_class"] == "NIMForRobustImageClassification"
    assert [(image["row"], image["label"]) for image in report.images] == [
        (image["row"], digit_pictures()[1][image["row"]]) for image in report.images
    ]


def test_the_call_in_python_gives_the_same(finished, folder):
    budget = {"steps": 2, "num_draws": 2, "num_queries": 8, "num_check_images": 2}
    report = evaluate_robustness(
        folder / "model", folder / "data", eps=48 / 255, eps_grid=[16 / 255], sigma=40.0, sigmas=[0.0], num_images=5,
        budget=budget, labels_by_index=True, seed=3, device="cpu", progress=False,
    )  # fmt: skip
    assert timeless(report) == timeless(finished[0])
    assert [sample["row"] for sample in report.samples] == [sample["row"] for sample in finished[0].samples]


def test_batch_size_changes_nothing(finished, folder, tmp_path):
    other = run(*arguments(folder, "--output_dir", tmp_path, "--per_device_eval_batch_size", "2"))
    assert timeless(other) == timeless(finished[0])


@pytest.mark.slow
def test_two_processes_a_kill_and_a_resumed_run_give_the_same(finished, folder, tmp_path):
    options = [*arguments(folder), "--output_dir", tmp_path / "out", "--attack_precision", "fp32"]
    process = subprocess.Popen(
        training_runs.command("evaluate_robustness", *options, num_processes=2),
        env=training_runs.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip

    def num_lines():
        return sum(path.read_text().count("\n") for path in (tmp_path / "out").glob("records*.jsonl"))

    deadline = time.monotonic() + 200
    while num_lines() < 30 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    # Workers first: the launcher would end them more gently.
    family = psutil.Process(process.pid)
    for member in [*family.children(recursive=True), family]:
        member.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    before = num_lines()
    total = len(finished[0].records) + 2  # and two gradient probes
    assert 30 <= before < total, output.decode()[-2000:]
    assert not (tmp_path / "out" / "results.json").exists()
    done = training_runs.launch("evaluate_robustness", *options, "--resume", num_processes=2)
    assert "2 processes on cpu" in done.stdout
    assert done.stdout.count("### Attacks") == 1
    assert timeless(tmp_path / "out" / "results.json") == timeless(finished[1] / "results.json")


def test_a_finished_run_is_not_repeated_or_added_to_by_accident(finished, folder):
    report, out = finished
    seconds = [record["seconds"] for record in report.records]
    again = run(*arguments(folder, "--output_dir", out, "--resume"))
    assert [record["seconds"] for record in again.records] == seconds
    with pytest.raises(ValueError, match="pass --resume"):
        run(*arguments(folder, "--output_dir", out))
    with pytest.raises(ValueError, match="seed was 3 and is 4"):
        run(*arguments(folder, "--output_dir", out, "--resume", "--seed", "4"))


def test_a_run_goes_on_with_the_same_images_and_model_alone(finished, folder, tmp_path):
    """Wherever they lie; others of the same name and number are refused."""
    report, out = finished
    shutil.copytree(out, tmp_path / "out")
    for name in ("data", "model"):
        shutil.copytree(folder / name, tmp_path / f"{name} elsewhere")
    moved = ["--model_name_or_path", tmp_path / "model elsewhere", "--dataset_name", tmp_path / "data elsewhere"]
    again = run(*arguments(folder, *moved, "--output_dir", tmp_path / "out", "--resume"))
    assert timeless(again)["records"] == timeless(report)["records"]
    datasets.DatasetDict({"test": digits_dataset(40, start=40)}).save_to_disk(tmp_path / "data")
    other = ["--dataset_name", tmp_path / "data", "--output_dir", tmp_path / "out", "--resume"]
    with pytest.raises(ValueError, match="the images, their labels or their order are others"):
        run(*arguments(folder, *other))


def test_attacks_may_search_in_bf16_and_records_tell(finished, folder, tmp_path):
    report, out = finished
    assert report.settings["attack_precision"] == "fp32"
    assert "bf16" not in render(report)
    options = arguments(folder, "--output_dir", tmp_path, "--attack_precision", "bf16", "--max_eval_samples", "3")
    half = run(*options)
    assert half.settings["attack_precision"] == "bf16"
    assert "search in bf16 (autocast); what they find is judged in float32" in " ".join(render(half).split())
    # Another search, judged as before: without an attack, or with one that needs no noise, nothing changes.
    found = [
        {
            (record["cell"], record["row"]): [record[name] for name in ("predictions", "scores", "distance")]
            for record in one.records
            if record["row"] in {image["row"] for image in half.images} and not record["skipped"]
        }
        for one in (report, half)
    ]
    differs = {key[0] for key, own in found[1].items() if own != found[0].get(key)}
    assert HEADLINE in differs
    attacks = [half.configuration(name) for name in differs]
    assert not any(one.is_deterministic or one.attack == "none" for one in attacks)
    # A device that computes in another precision goes on in that of the run.
    assert run(*options, "--resume", "--attack_precision", "auto").records == half.records
    with pytest.raises(ValueError, match="attack_precision was 'bf16' and is 'fp32'"):
        run(*options, "--resume", "--attack_precision", "fp32")
    with pytest.raises(ValueError, match="attack_precision was 'fp32' and is 'bf16'"):
        run(*arguments(folder, "--output_dir", out, "--resume", "--attack_precision", "bf16"))


def test_a_run_from_before_there_was_a_precision_goes_on(finished, folder, tmp_path):
    out = shutil.copytree(finished[1], tmp_path / "old")
    settings = json.loads((out / "settings.json").read_text())
    del settings["attack_precision"], settings["num_samples"], settings["vote"]
    (out / "settings.json").write_text(json.dumps(settings))
    assert timeless(run(*arguments(folder, "--output_dir", out, "--resume"))) == timeless(finished[0])


def test_the_vote_is_the_defense(finished, folder, tmp_path, capsys):
    options = arguments(folder, "--output_dir", tmp_path / "out", "--max_eval_samples", "2", "--num_samples", "4")
    report = run(*options, "--vote", "majority")
    assert (report.settings["num_samples"], report.settings["vote"]) == (4, "majority")
    assert (finished[0].settings["num_samples"], finished[0].settings["vote"]) == (1, "mean")
    assert report.correct("clean", 40.0).shape == (2, 11)
    assert "combines 4 noise draws: the class that most of them choose" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "out" / "results.json").read_text())["settings"]["num_samples"] == 4
    # Gradients are those of the mean vote, and agree with its differences.
    (check,) = [check for check in report.checks if check["name"].startswith("gradients agree")]
    assert "on 100 % of 2 images" in check["detail"]
    # Without noise there is nothing to vote: the same as of single draws.
    for name in ("clean", "EOT-PGD, sigma off", "EOT-PGD, sigma 0"):
        for key in ("off", "0"):
            own, other = (
                {r["row"]: r["predictions"][key] for r in one.records if r["cell"] == name}
                for one in (report, finished[0])
            )
            assert own.items() <= other.items()
    with pytest.raises(ValueError, match="num_samples was 4 and is 5"):
        run(*[*options[:-1], "5"], "--vote", "majority", "--resume")
    with pytest.raises(ValueError, match="vote was 'majority' and is 'mean'"):
        run(*options, "--vote", "mean", "--resume")
    with pytest.raises(ValueError, match="vote mean is for several noise draws"):
        run(*[*options[:-1], "1"], "--vote", "mean", "--resume")


def test_a_budget_cuts_and_says_so_and_a_resumed_run_keeps_its_plan(folder, tmp_path, capsys, monkeypatch):
    options = arguments(folder, "--output_dir", tmp_path, "--max_eval_samples", "30", "--budget_minutes", "2")
    # Of 30 images, 20 fit into the time: the cost of an image is that of the suite.
    monkeypatch.setattr(evaluation, "seconds_per_pass", lambda *_: 108 / 20 / 435)
    report = run(*options)
    assert f"cut: {report.cut[0]}" in capsys.readouterr().out
    monkeypatch.setattr(evaluation, "seconds_per_pass", None)
    assert run(*options, "--resume").cut == report.cut
    assert report.cut[0].endswith("instead of 30, to fit into 2 minutes")
    assert 16 <= len(report.images) < 30
    assert report.settings["strength"]["num_images"] == len(report.images)
    assert "to fit into 2 minutes" in render(report)


def test_a_resumed_run_keeps_the_grids_that_were_cut(folder, tmp_path, monkeypatch):
    options = arguments(folder, "--output_dir", tmp_path, "--budget_minutes", "60")

    def narrower(suite, *_):
        return replace(suite, eps_grid=(), model=replace(suite.model, sigmas=(None,))), ["no further eps"]

    monkeypatch.setattr(evaluation, "fit_suite", narrower)
    report = run(*options)
    assert report.cut == ["no further eps"]
    assert report.settings["sigmas"] == [report.settings["sigma"], None]
    assert {cell["eps"] for cell in report.cells if cell["group"] == "white-box"} == {report.settings["eps"]}
    monkeypatch.setattr(evaluation, "fit_suite", None)
    resumed = run(*options, "--resume")
    assert (resumed.cut, resumed.cells, resumed.settings) == (report.cut, report.cells, report.settings)


def test_too_small_a_budget_is_answered_with_options_that_fit(folder, tmp_path, monkeypatch):
    options = arguments(folder, "--output_dir", tmp_path, "--max_eval_samples", "30")
    monkeypatch.setattr(evaluation, "seconds_per_pass", lambda *_: 0.08)
    with pytest.raises(ValueError, match=r"Pass --budget_minutes \d+, which") as error:
        run(*options, "--budget_minutes", "2")
    fitting = str(error.value).partition("without --budget_minutes, you can run: ")[2]
    assert "--max_eval_samples" in fitting
    # Options that come last win.
    report = run(*options, *fitting.split())
    assert report.cut == []
    assert f"--max_eval_samples {len(report.images)}" in fitting


def test_another_model_and_a_surrogate(folder, tmp_path, capsys):
    """A ViT has no sigma; attacks are transferred to it from the De^3 model, whose defense is off."""
    torch.manual_seed(1)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8,
                       patch_size=4, num_labels=10, num_channels=1)  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
    processor.save_pretrained(tmp_path / "vit")
    options = ["--model_name_or_path", tmp_path / "vit", "--dataset_name", folder / "data", *SMALL]
    with pytest.raises(ValueError, match=r"has no defense: leave sigma \(40\) out"):
        run(*options, "--output_dir", tmp_path / "out")
    options[options.index("--sigma") + 1] = "config"
    with pytest.raises(ValueError, match="num_samples and vote are for a defense with a sigma above 0"):
        run(*options, "--output_dir", tmp_path / "out", "--num_samples", "4")
    with pytest.raises(ValueError, match="attack_precision bf16 is for attacks on a random defense"):
        run(*options, "--output_dir", tmp_path / "out", "--attack_precision", "bf16")
    report = run(*options, "--output_dir", tmp_path / "out", "--surrogates", f"nim={folder / 'model'}")
    assert report.settings["sigma"] is None
    assert {cell["attack_sigma"] for cell in report.cells} == {None}
    assert report.configuration("transfer from nim").source == "nim"
    assert "none was given" not in render(report)
    assert (tmp_path / "out" / "examples.png").exists() == any(
        not record["skipped"] for record in report.records if record["cell"] == HEADLINE
    )


def test_reports_are_compared(finished, folder, tmp_path, capsys):
    _, out = finished
    text = run("--compare", out, out / "results.json")
    assert HEADLINE in text
    assert text in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sigma", "-1"], "at least 0"),
        (["--rows_per_pass", "0"], "--rows_per_pass must be at least 1"),
        (["--surrogates", "model"], "NAME=MODEL"),
        (["--attacks", "deepfool"], "unknown attack 'deepfool'"),
    ],
)
def test_wrong_options(folder, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        run(*arguments(folder, "--output_dir", tmp_path), *options)
    assert message in capsys.readouterr().err


def test_what_is_missing_is_named(capsys):
    with pytest.raises(SystemExit):
        run("--model_name_or_path", "model")
    assert "--dataset_name is missing" in capsys.readouterr().err


def test_a_signal_says_what_is_kept_and_how_to_go_on(finished, folder, tmp_path, capsys, monkeypatch, own_signals):
    done, append_record = [], runner.append_record

    def append(*record):
        done.append(append_record(*record))
        if len(done) == 9:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(runner, "append_record", append)
    monkeypatch.setattr(sys, "orig_argv", ["/bin/python3", "x.py", "--token", "SECRET", "--hub_token=SECRET"])
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def main():
        # As one of several processes begins.
        release_signals()
        postpone_signals()
        run(*arguments(folder, "--output_dir", tmp_path))

    with pytest.raises(SystemExit, match="130"):
        run_command(main)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "interrupted" in line]
    assert line.endswith(
        f": interrupted by SIGINT; 9 of {len(finished[0].records) + 2} records, each of an image under an attack, are"
        f" kept in {tmp_path}. Go on with: python x.py --token TOKEN --hub_token=TOKEN --resume"
    )
    monkeypatch.undo()
    assert timeless(run(*arguments(folder, "--output_dir", tmp_path, "--resume"))) == timeless(finished[0])
