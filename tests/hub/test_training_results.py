# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What a finished run leaves behind, and what of it goes to the Hub."""

import argparse
import json
import os
import signal
import types
from dataclasses import replace
from pathlib import Path

import accelerate
import fake_reports
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from conftest import tiny_config
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects

from transformers_nim import NIMForImageClassification, NIMForPreTraining, NIMImageProcessor, __version__
from transformers_nim.data.loading import ImageData
from transformers_nim.hub import training_results as publish
from transformers_nim.robustness import render
from transformers_nim.training.launch import Plan
from transformers_nim.training.optimization import make_optimizer, make_schedule, parameter_groups
from transformers_nim.training.run import RunOptions, TrainingRun
from transformers_nim.utils.interruption import Interrupted, catch_signals, deferred_signals
from transformers_nim.utils.output_folder import hold_folder


TOKEN = "hf_not_for_anybody_s_eyes"
PLAN = Plan(total_batch_size=8, total_steps=2, steps_per_epoch=2.5, warmup_steps=0, learning_rate=1e-3)

# What the arguments say of what is computed for an image.
RECIPE = {
    "pretext": "nim",
    "mask_ratio": 0.75,
    "train_on": "clean",
    "num_training_draws": 1,
    "adversarial_steps": 0,
    "adversarial_through": "defense",
    "train_denoiser": False,
    "denoising_weight": 0.0,
}


class Hub:
    """Stands in for `HfApi` and remembers what it was asked."""

    def __init__(self):
        self.asked: list[tuple[str, dict]] = []

    def __call__(self, token=None):
        self.token = token
        return self

    def create_repo(self, name, **options):
        self.asked.append(("create_repo", {"name": name, **options}))
        return types.SimpleNamespace(repo_id=f"nim/{name.split('/')[-1]}")

    def upload_folder(self, **options):
        self.asked.append(("upload_folder", options))
        return "https://hub/nim"


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(publish, "HfApi", hub)
    return hub


@pytest.fixture(autouse=True)
def _accelerate():
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def arguments(output_dir, **changed) -> argparse.Namespace:
    fields = {
        "output_dir": str(output_dir),
        "push_to_hub": False,
        "validation_split_name": None,
        "hub_model_id": None,
        "hub_private_repo": False,
        "hub_token": TOKEN,
        "token": TOKEN,
        "seed": 3,
        **RECIPE,
    }
    return argparse.Namespace(**{**fields, **changed})


def image_data(num_train: int | None = 20, num_validation: int | None = 5) -> ImageData:
    train = iter(()) if num_train is None else range(num_train)
    return ImageData("blocks", train, None if num_validation is None else range(num_validation), "image")


def trained(output_dir, cls=NIMForPreTraining, figures=None) -> TrainingRun:
    """A run of two steps."""
    accelerator = accelerate.Accelerator(cpu=True)
    torch.manual_seed(0)
    model = cls(tiny_config())
    optimizer = make_optimizer(parameter_groups(model, 1e-2, 0.05), (0.9, 0.95))
    schedule = make_schedule(optimizer, "constant", 0, 2)
    processor = NIMImageProcessor.from_config(model.config)
    model, optimizer = accelerator.prepare(model, optimizer)
    options = RunOptions(
        output_dir=output_dir,
        total_steps=2,
        total_batch_size=8,
        steps_per_epoch=2.5,
        seed=0,
        data_identity="blocks",
        checkpointing_steps=1,
        best_metric=next(iter(figures), None) if figures else None,
    )
    run = TrainingRun(accelerator, options, model, optimizer, schedule, processor)

    def batches(first_batch):
        for number in (0, 1):
            yield {"pixel_values": torch.randn(8, 3, 32, 32), "undecodable": [str(row) for row in range(20 * number)]}

    def compute_loss(batch):
        labels = {} if cls is NIMForPreTraining else {"labels": torch.arange(8) % 5}
        return model(batch["pixel_values"], **labels).loss

    run.fit(batches, compute_loss, (lambda model: dict(figures)) if figures else None)
    return run


FIGURES = {
    "pretraining": {"loss": 0.25, "psnr_sigma_25": 27.125, "psnr_noisy_sigma_25": 20.5},
    "finetuning": {"loss_off": 1.5, "accuracy_off": 0.75, "accuracy_off_low": 0.5, "accuracy_off_high": 0.875},
}
CLASSES = {"pretraining": NIMForPreTraining, "finetuning": NIMForImageClassification}


@pytest.mark.parametrize("task", FIGURES)
def test_what_a_run_leaves_behind(tmp_path, task, capsys):
    output_dir = tmp_path / "my-model"
    run = trained(output_dir, CLASSES[task], FIGURES[task])
    results = publish.save(run, arguments(output_dir), PLAN, image_data(), task, "What it is.")

    assert json.loads((output_dir / "all_results.json").read_text()) == results
    expected = {
        "task": task,
        "dataset": "blocks",
        "steps": 2,
        "epochs": 0.8,
        "total_batch_size": 8,
        "learning_rate": 1e-3,
        "metrics": FIGURES[task],
        "validation_split": "validation",
        "num_eval_images": 5,
        "undecodable_eval_images": 0,
        "undecodable_images": 20,
        "seconds": round(run.seconds, 1),
        "images_per_second": round(16 / run.seconds, 2),
        "num_processes": 1,
        "device": "cpu",
        "mixed_precision": "no",
    }
    assert {name: results[name] for name in expected} == expected
    assert results["best"]["metrics"] == FIGURES[task]
    flops = results["compute"]["flops_per_image"]
    assert flops > 1e6
    assert results["compute"]["total_flops"] == 16 * flops
    assert results["arguments"] == {
        **RECIPE,
        "hub_model_id": None,
        "hub_private_repo": False,
        "output_dir": output_dir.name,
        "push_to_hub": False,
        "seed": 3,
        "validation_split_name": None,
    }
    assert results["versions"]["transformers_nim"] == __version__
    assert results["versions"]["accelerate"] == accelerate.__version__

    loaded = CLASSES[task].from_pretrained(output_dir)
    for name, tensor in run.inner_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert list(NIMImageProcessor.from_pretrained(output_dir).image_mean) == loaded.config.image_mean
    card = ModelCard.load(output_dir / "README.md")
    assert "# my-model" in card.text
    assert "What it is." in card.text
    for name, value in FIGURES[task].items():
        assert (f"{100 * value:.1f}" if "accuracy" in name else f"{value:.4g}") in card.text
    printed = capsys.readouterr().out
    assert "20 images could not be decoded (replaced by others): rows 0, 1, 2, 3, 4" in printed
    assert "8, 9, ...\n" in printed
    assert str(output_dir) in printed


def test_tokens_are_in_no_file(tmp_path, hub):
    args = arguments(tmp_path, push_to_hub=True)
    repository = publish.create_repository(args)
    run = trained(tmp_path)
    publish.save(run, args, PLAN, image_data(), "pretraining", "A model.", repository)
    publish.push(run, args, "pretraining", repository)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


def test_streams_and_runs_without_validation(tmp_path, capsys):
    run = trained(tmp_path)
    run.seconds = 0.0
    run.undecodable = {"0.1.0.10 (a/b.jpg)", "0.1.0.9", "0.0.1.11 (c)"}
    plan = replace(PLAN, steps_per_epoch=0.0)
    results = publish.save(run, arguments(tmp_path), plan, image_data(None, None), "pretraining", "A model.")
    assert (results["epochs"], results["images_per_second"], results["num_eval_images"]) == (None, None, 0)
    assert (results["metrics"], results["best"]) == ({}, None)
    assert "Nothing was measured." in ModelCard.load(tmp_path / "README.md").text
    assert "3 images could not be decoded (replaced by others): rows 0.0.1.11 (c), 0.1.0.9, 0.1.0.10 (a/b.jpg)\n" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("changed", "name", "private"),
    [
        ({}, "my-model", False),
        ({"hub_model_id": "me/it", "hub_private_repo": True}, "me/it", True),
    ],
)
def test_repository_is_made_before_training(tmp_path, hub, changed, name, private):
    args = arguments(tmp_path / "my-model", push_to_hub=True, **changed)
    assert publish.create_repository(args) == f"nim/{name.split('/')[-1]}"
    assert hub.asked == [("create_repo", {"name": name, "private": private, "exist_ok": True})]
    assert hub.token == TOKEN


def test_nothing_is_pushed_unasked(tmp_path, hub):
    args = arguments(tmp_path)
    assert publish.create_repository(args) is None
    publish.push(trained(tmp_path), args, "pretraining", None)
    assert hub.asked == []


def test_relative_folders_have_a_name(tmp_path, hub, monkeypatch):
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path / "my-model")
    assert publish.create_repository(arguments(".", push_to_hub=True)) == "nim/my-model"


def test_what_must_not_be_published_is_not_pushed(tmp_path, hub):
    (tmp_path / "notes.json").write_text(json.dumps({"token": "ghp_" + "aB3" * 12}))
    (tmp_path / "nohup.out").write_text("x")
    args = arguments(tmp_path, push_to_hub=True)
    run = trained(tmp_path)
    publish.save(run, args, PLAN, image_data(), "pretraining", "A model.", "nim/my-model")
    with pytest.raises(ValueError, match="is saved but was not pushed") as raised:
        publish.push(run, args, "pretraining", "nim/my-model")
    first, second, third = str(raised.value).splitlines()
    assert f"transformers_nim.commands.push {tmp_path} --repo_id nim/my-model --push" in first
    assert second.startswith("- nohup.out is of no kind that is published")
    assert third.startswith("- notes.json, line 1: this looks like a secret")
    assert hub.asked == []
    # Nothing of the run is lost.
    assert json.loads((tmp_path / "all_results.json").read_text())["steps"] == 2
    NIMForPreTraining.from_pretrained(tmp_path)


def test_results_that_a_card_names_stay(tmp_path):
    report = fake_reports.simulated(sigma=None, sigmas=())
    (tmp_path / "robustness.json").write_text(json.dumps(report.to_dict()))
    named = {"name": "a", "summary": "b", "results": ["gone.json", "robustness.json", "all_results.json"]}
    (tmp_path / "card.json").write_text(json.dumps(named))
    run = trained(tmp_path, NIMForImageClassification, FIGURES["finetuning"])
    publish.save(run, arguments(tmp_path), PLAN, image_data(), "finetuning", "A model.")
    assert json.loads((tmp_path / "card.json").read_text())["results"] == ["robustness.json", "all_results.json"]
    assert render(report).split("\n\n")[0] in ModelCard.load(tmp_path / "README.md").text


def test_what_is_pushed(tmp_path, hub, capsys):
    output_dir = tmp_path / "my-model"
    run = trained(output_dir, NIMForImageClassification, FIGURES["finetuning"])
    # What else can lie there.
    for name in ("logs/nim/events.out", "pictures/denoised.png", "checkpoint-7.partial/model.safetensors",
                 "best.partial/model.safetensors", "best.old/config.json", "log.partial"):  # fmt: skip
        (output_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (output_dir / name).touch()
    args = arguments(output_dir, push_to_hub=True)
    publish.save(run, args, PLAN, image_data(), "finetuning", "A model.", "nim/my-model")
    publish.push(run, args, "finetuning", "nim/my-model")
    ((kind, options),) = hub.asked
    assert kind == "upload_folder"
    assert (options["repo_id"], Path(options["folder_path"])) == ("nim/my-model", output_dir)
    assert options["commit_message"] == "NIM finetuning, 2 steps"
    assert hub.token == TOKEN
    files = [str(path.relative_to(output_dir)) for path in output_dir.rglob("*") if path.is_file()]
    assert {"checkpoint-1/model.safetensors", "checkpoint-2/checkpoint.json", "best/config.json"} < set(files)
    chosen = {name: options[name] for name in ("allow_patterns", "ignore_patterns")}
    assert sorted(filter_repo_objects(files, **chosen)) == [
        "README.md",
        "all_results.json",
        "card.json",
        "config.json",
        "log.jsonl",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    # The card names the model as others will load it.
    assert 'model="nim/my-model"' in ModelCard.load(output_dir / "README.md").text
    assert "pushed: https://hub/nim" in capsys.readouterr().out


def test_other_processes_need_no_folder(tmp_path, monkeypatch):
    """They write nothing there, and their machine may not share it."""
    run = trained(tmp_path / "there")
    monkeypatch.setitem(PartialState._shared_state, "process_index", 1)
    assert not run.accelerator.is_main_process
    with hold_folder(tmp_path / "out", "--resume", is_main=False):
        results = publish.save(run, arguments(tmp_path / "out"), PLAN, image_data(), "pretraining", "A model.")
    assert results["steps"] == run.step
    assert not (tmp_path / "out").exists()


PUSH = "; only the push is missing: transformers-nim push {} --repo_id nim/my-model --push"


@pytest.mark.parametrize(("repository", "missing"), [(None, ""), ("nim/my-model", PUSH)])
def test_a_signal_during_the_export_waits_until_all_is_written(
    tmp_path, hub, monkeypatch, own_signals, repository, missing
):
    catch_signals()
    run, args = trained(tmp_path), arguments(tmp_path)
    export = run.export

    def export_with_a_signal(folder):
        os.kill(os.getpid(), signal.SIGTERM)
        export(folder)

    monkeypatch.setattr(run, "export", export_with_a_signal)
    with pytest.raises(Interrupted) as stopped, deferred_signals():
        publish.save(run, args, PLAN, image_data(), "pretraining", "A model.", repository)
    whole = f"training has ended, and the model in {tmp_path} is whole"
    assert stopped.value.number == signal.SIGTERM
    assert stopped.value.kept == whole + missing.format(tmp_path)
    assert stopped.value.options == ()
    assert json.loads((tmp_path / "all_results.json").read_text())["steps"] == 2
    NIMForPreTraining.from_pretrained(tmp_path)


def test_a_signal_during_the_push_says_that_it_is_missing(tmp_path, hub, monkeypatch, own_signals):
    catch_signals()
    run, args = trained(tmp_path), arguments(tmp_path)
    publish.save(run, args, PLAN, image_data(), "pretraining", "A model.", "nim/my-model")
    monkeypatch.setattr(hub, "upload_folder", lambda **_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match="interrupted by SIGINT; training has ended, and the model") as stopped:
        publish.push(run, args, "pretraining", "nim/my-model")
    assert stopped.value.kept.endswith(PUSH.format(tmp_path))
