# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The pretraining script as a user runs it."""

import json
import os
import signal
import subprocess

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from training_runs import (
    command,
    digits_dataset,
    evaluations,
    kill_after,
    launch,
    losses,
    main,
    same_weights,
    save_digits,
    save_tiny_config,
    save_tiny_denoiser,
    watch_updates,
)
from transformers import AutoImageProcessor, AutoModelForPreTraining
from vit_mae_reference import random_vit_mae

from transformers_nim import NIMConfig, NIMForImageClassification, NIMForPreTraining
from transformers_nim.commands import pretrain
from transformers_nim.data.decoded import DecodedImages
from transformers_nim.training.precision import Precision
from transformers_nim.training.run import TrainingRun
from transformers_nim.utils.interruption import Interrupted, catch_signals


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return save_digits(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    return save_tiny_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def arguments(data, config) -> list[str]:
    """Of 200 images in steps of 16, so that step 12 ends in the middle of an epoch."""
    return [
        "--dataset_name", data, "--config_name", config, "--max_train_steps", "12", "--checkpointing_steps", "4",
        "--logging_steps", "1", "--base_learning_rate", "1e-2", "--per_device_train_batch_size", "16",
        "--num_workers", "1", "--report_to", "none",
    ]  # fmt: skip


@pytest.mark.slow
def test_tensorboard_shows_each_step_once(arguments, tmp_path, monkeypatch):
    """After a kill, and after a run that has only to validate once more."""
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = [*arguments, "--eval_steps", "6", "--output_dir", tmp_path, "--report_to", "tensorboard"]

    class Killed(BaseException):
        pass

    def update(run, *rest):
        if run.step == 7:
            raise Killed
        return whole(run, *rest)

    whole = TrainingRun._update
    monkeypatch.setattr(TrainingRun, "_update", update)
    with pytest.raises(Killed):
        main("pretrain", *options)
    monkeypatch.undo()
    for _ in range(2):
        main("pretrain", *options, "--resume_from_checkpoint", "latest")
        shown = tensorboard.EventAccumulator(str(tmp_path / "logs" / "nim-pretraining")).Reload()
        assert [event.step for event in shown.Scalars("loss")] == list(range(1, 13))
        assert [event.step for event in shown.Scalars("eval_loss")] == [6, 12]
        assert [event.value for event in shown.Scalars("loss")] == pytest.approx(
            [loss for _, loss in losses(tmp_path)]
        )


@pytest.fixture(scope="module")
def uninterrupted(arguments, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("uninterrupted")
    done = launch("pretrain", *arguments, "--output_dir", output_dir, "--report_to", "tensorboard")
    return done, output_dir


def test_it_leaves_everything_it_promises(uninterrupted):
    done, output_dir = uninterrupted
    for line in ("NIM pretraining", "200 images to train on, 40 to validate with", "= 16 per update", "0.96 epochs",
                 "sigma gamma (concentration 25, scale 3), mean 75"):  # fmt: skip
        assert line in done.stdout
    assert "step/s" in done.stderr
    assert "images_per_s" in done.stderr
    model = AutoModelForPreTraining.from_pretrained(output_dir)
    assert type(model) is NIMForPreTraining
    assert model.config.pretraining_sigma == {"type": "gamma", "concentration": 25.0, "scale": 3.0}
    processor = AutoImageProcessor.from_pretrained(output_dir)
    assert list(processor.image_mean) == model.config.image_mean
    results = json.loads((output_dir / "all_results.json").read_text())
    assert results["steps"] == 12
    assert results["metrics"]["psnr_noisy_sigma_25"] > results["metrics"]["psnr_noisy_sigma_75"]
    assert results["best"]["metric"] == "loss"
    assert f"{results['metrics']['psnr_sigma_50']:.4g}" in ModelCard.load(output_dir / "README.md").text
    assert [step for step, _ in losses(output_dir)] == list(range(1, 13))
    picture = np.asarray(Image.open(output_dir / "pictures" / "step-12.png").convert("L"))
    assert picture.std() > 10, "an empty picture"
    assert list((output_dir / "logs").rglob("events.out.tfevents*"))
    # The newest two.
    assert sorted(path.name for path in output_dir.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-8"]


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_and_resume_as_exactly(uninterrupted, arguments, tmp_path):
    _, one_process = uninterrupted
    halved = [*arguments, "--per_device_train_batch_size", "8"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kill_after("checkpoint-4", killed, *halved, num_processes=2)
    done = launch("pretrain", *halved, "--output_dir", killed, "--resume_from_checkpoint", "latest", num_processes=2)
    assert "8 images x 2 processes x 1 pass = 16 per update" in done.stdout
    launch("pretrain", *halved, "--output_dir", whole, num_processes=2)
    assert losses(killed) == losses(whole)
    assert same_weights(killed, whole)
    # The same images under the same noise; only sums are taken in another order.
    for (step, loss), (same_step, expected) in zip(losses(whole), losses(one_process), strict=True):
        assert step == same_step
        assert loss == pytest.approx(expected, rel=1e-4)
    assert evaluations(whole)[-1] == pytest.approx(evaluations(one_process)[-1], rel=1e-3)


def test_resumed_with_processes_traded_for_passes(arguments, tmp_path):
    """At an odd step, where the passes of before do not make whole updates of now."""
    common = [*arguments, "--checkpointing_steps", 3, "--max_train_steps", 8]
    main("pretrain", *common, "--output_dir", tmp_path)
    whole = losses(tmp_path)
    main("pretrain", *common, "--output_dir", tmp_path, "--per_device_train_batch_size", 8,
         "--gradient_accumulation_steps", 2, "--resume_from_checkpoint", tmp_path / "checkpoint-3")  # fmt: skip
    assert losses(tmp_path) == [(step, pytest.approx(loss, rel=1e-4)) for step, loss in whole]


@pytest.mark.parametrize("name", ["no", "bf16"])
def test_a_resumed_run_keeps_the_precision_that_was_measured(name, arguments, tmp_path, monkeypatch, capsys):
    """Whatever would be measured now."""
    found = iter([Precision(name, "measured: so fast")])
    monkeypatch.setattr("transformers_nim.training.launch.faster_cpu_precision", lambda: next(found))
    common = [*arguments, "--mixed_precision", "auto", "--max_train_steps", 6, "--output_dir", tmp_path]
    results = main("pretrain", *common)
    assert f"precision {name} (measured: so fast)\n" in capsys.readouterr().out
    assert results["mixed_precision"] == name
    whole = losses(tmp_path)
    results = main("pretrain", *common, "--resume_from_checkpoint", "latest")
    assert f"precision {name} (as in {tmp_path / 'checkpoint-4'})\n" in capsys.readouterr().out
    assert results["mixed_precision"] == name
    assert losses(tmp_path) == whole


@pytest.mark.parametrize("pretext", ["nim", "mae"])
def test_no_update_waits_for_an_accelerator(pretext, arguments, tmp_path, monkeypatch):
    watched = watch_updates(monkeypatch)
    main("pretrain", *arguments, "--pretext", pretext, "--max_train_steps", 2, "--logging_steps", 2, "--num_workers",
         0, "--eval_sigmas", "--output_dir", tmp_path)  # fmt: skip
    assert [waits.found for waits in watched] == [[], []]


@pytest.mark.slow
def test_64_images_are_learned_by_heart(config, tmp_path):
    parts = datasets.DatasetDict({"train": digits_dataset(64), "validation": digits_dataset(64)})
    parts.save_to_disk(tmp_path / "data")
    results = main(
        "pretrain", "--dataset_name", tmp_path / "data", "--config_name", config, "--output_dir", tmp_path / "out",
        "--max_train_steps", 300, "--learning_rate", 1e-2, "--num_workers", 0, "--crop_scale", 1, 1,
        "--horizontal_flip", 0, "--sigma_distribution", "constant", "--sigma_value", 50, "--max_grad_norm", 1,
        "--report_to", "none", "--logging_steps", 50,
    )  # fmt: skip
    curve = losses(tmp_path / "out")
    assert curve[-1][1] < 0.25 * curve[0][1]
    assert results["metrics"]["psnr_sigma_50"] > results["metrics"]["psnr_noisy_sigma_50"]


@pytest.mark.parametrize("source", ["imagefolder", "disk", "stream"])
def test_images_come_from_anywhere(source, config, data, tmp_path):
    if source == "imagefolder":
        for index, row in enumerate(digits_dataset(40)):
            folder = tmp_path / "pictures" / f"class {row['label']}"
            folder.mkdir(parents=True, exist_ok=True)
            row["image"].save(folder / f"{index}.png")
        (folder / "broken.png").write_bytes(b"not a picture")
        (tmp_path / "others" / "class 1").mkdir(parents=True)
        for name in ("good", "broken"):
            row["image"].save(tmp_path / "others" / "class 1" / f"{name}.png")
        (tmp_path / "others" / "class 1" / "broken.png").write_bytes(b"not a picture")
        where = ["--train_dir", tmp_path / "pictures", "--validation_dir", tmp_path / "others"]
    elif source == "disk":
        digits_dataset(40).save_to_disk(tmp_path / "saved")
        where = ["--dataset_name", tmp_path / "saved"]
    else:
        where = ["--dataset_name", data, "--streaming"]
    output_dir = tmp_path / "out"
    common = [
        *where, "--config_name", config, "--output_dir", output_dir, "--per_device_train_batch_size", 8,
        "--num_workers", 0, "--report_to", "none", "--eval_sigmas", 20, "--logging_steps", 1,
        "--checkpointing_steps", 3, "--max_eval_samples", 8,
    ]  # fmt: skip
    results = main("pretrain", *common, "--max_train_steps", 8)
    assert results["undecodable_images"] == (1 if source == "imagefolder" else 0)
    assert results["num_eval_images"] <= 8
    assert results["undecodable_eval_images"] == (1 if source == "imagefolder" else 0)
    whole = losses(output_dir)
    # Again from step 3, through the same images.
    main("pretrain", *common, "--max_train_steps", 8, "--resume_from_checkpoint", output_dir / "checkpoint-3")
    assert losses(output_dir) == whole
    if source == "stream":
        # Other workers would read it in another order.
        with pytest.raises(ValueError, match=r"with 0 workers each \(.* and is .* with 2 workers each \("):
            main("pretrain", *common, "--max_train_steps", 8, "--resume_from_checkpoint", "latest", "--num_workers", 2)


def test_images_that_are_seen_twice_are_decoded_once(config, data, tmp_path, monkeypatch):
    asked, read = [], DecodedImages.read

    def watched(rows, reader, max_bytes, **options):
        asked.append(max_bytes)
        return read(rows, reader, max_bytes, **options)

    monkeypatch.setattr(DecodedImages, "read", watched)
    common = ["--dataset_name", data, "--config_name", config, "--max_train_samples", 20, "--report_to", "none",
              "--per_device_train_batch_size", 16, "--num_workers", 0, "--eval_sigmas"]  # fmt: skip
    for name, options in (("once", []), ("never", ["--max_decoded_gb", 0]), ("single", ["--max_train_steps", 1])):
        main("pretrain", *common, "--output_dir", tmp_path / name, "--max_train_steps", 2, *options)
    assert asked == [1e9]
    assert same_weights(tmp_path / "once", tmp_path / "never")


def test_a_stream_needs_an_end(config, data, tmp_path):
    with pytest.raises(ValueError, match="max_train_steps"):
        main("pretrain", "--dataset_name", data, "--streaming", "--config_name", config, "--output_dir", tmp_path,
             "--report_to", "none")  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        ["--pretext", "mae", "--mask_ratio", 0.5, "--gradient_checkpointing"],
        ["--pretext", "mae", "--mixed_precision", "bf16"],
        ["--sigma_distribution", "uniform", "--sigma_low", 10, "--sigma_high", 60, "--mixed_precision", "bf16"],
        ["--gradient_checkpointing", "--config_overrides", "norm_pix_loss=true", "--lr_scheduler_type", "linear"],
        ["--eval_steps", "epoch", "--image_steps", 2],
        pytest.param(["--torch_compile", "--eval_sigmas"], marks=pytest.mark.slow),
        ["--num_train_epochs", 0.05, "--checkpointing_steps", "epoch", "--num_warmup_steps", 1],
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_options(options, arguments, tmp_path):
    steps = [] if "--num_train_epochs" in options else ["--max_train_steps", 3]
    without = arguments[: arguments.index("--max_train_steps")] + arguments[arguments.index("--max_train_steps") + 2 :]
    results = main("pretrain", *without, *steps, "--output_dir", tmp_path, "--num_workers", 0, *options)
    assert results["steps"] == (1 if "--num_train_epochs" in options else 3)
    assert all(np.isfinite(loss) for _, loss in losses(tmp_path))
    model = NIMForPreTraining.from_pretrained(tmp_path)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    if "uniform" in options:
        assert model.config.pretraining_sigma == {"type": "uniform", "low": 10.0, "high": 60.0}
    if "mae" in options:
        assert "psnr_sigma_50" not in results["metrics"]
        assert "no denoiser" in (tmp_path / "README.md").read_text()
        assert "denoiser =" not in (tmp_path / "README.md").read_text()
        # What it is for: the encoder of a classifier.
        NIMForImageClassification.from_pretrained(tmp_path, num_labels=10)
    assert model.config.norm_pix_loss == ("norm_pix_loss=true" in options)
    if "--image_steps" in options:
        assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["step-2.png", "step-3.png"]


@pytest.mark.parametrize("kind", ["nim", "vit_mae"])
def test_warm_start(kind, data, tmp_path):
    if kind == "nim":
        source = save_tiny_denoiser(tmp_path / "source")
        # Saved in half precision, trained in full.
        NIMForPreTraining.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)
        expected = NIMForPreTraining.from_pretrained(source, dtype=torch.float32).state_dict()
    else:
        vit_mae = random_vit_mae(image_size=8, patch_size=2, num_channels=1)
        vit_mae.save_pretrained(tmp_path / "source")
        expected = {"decoder.projection.weight": vit_mae.decoder.decoder_pred.weight.detach()}
    main(
        "pretrain", "--dataset_name", data, "--init_from", tmp_path / "source", "--output_dir", tmp_path / "out",
        "--max_train_steps", 1, "--learning_rate", 1e-12, "--weight_decay", 0, "--num_workers", 0, "--report_to",
        "none", "--num_warmup_steps", 0,
    )  # fmt: skip
    model = NIMForPreTraining.from_pretrained(tmp_path / "out")
    assert isinstance(model.config, NIMConfig)
    assert model.dtype == torch.float32
    for name, tensor in expected.items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=1e-9)


def test_a_run_does_not_overwrite_another(uninterrupted, arguments):
    _, output_dir = uninterrupted
    with pytest.raises(ValueError, match="resume_from_checkpoint"):
        main("pretrain", *arguments, "--output_dir", output_dir)


@pytest.mark.slow
def test_it_pushes_to_the_hub(arguments, loopback_hub, tmp_path):
    env = loopback_hub.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
    output_dir = tmp_path / "nim-vit-digits"
    launch("pretrain", *arguments, "--max_train_steps", 4, "--output_dir", output_dir, "--push_to_hub",
           "--hub_private_repo", "--hub_token", loopback_hub.token, env=env)  # fmt: skip
    files = loopback_hub.files("nim/nim-vit-digits")
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "all_results.json",
            "log.jsonl"} <= files.keys()  # fmt: skip
    # Validation images are not ours to publish.
    assert not [name for name in files if name.startswith(("checkpoint", "logs", "best", "pictures"))]
    assert files["model.safetensors"] == (output_dir / "model.safetensors").read_bytes()
    for name, content in files.items():
        assert loopback_hub.token.encode() not in content, name


@pytest.mark.slow
def test_a_wrong_token_shows_before_training(arguments, loopback_hub, tmp_path):
    env = loopback_hub.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
    failed = subprocess.run(
        command("pretrain", *arguments, "--output_dir", tmp_path / "out", "--push_to_hub", "--hub_token", "hf_wrong"),
        capture_output=True, text=True, env=env, timeout=120,
    )  # fmt: skip
    assert failed.returncode != 0
    assert "401" in failed.stderr
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_help_names_the_paper(capsys):
    with pytest.raises(SystemExit) as stopped:
        main("pretrain", "--help")
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "gamma with concentration 25 and scale 3" in shown
    assert "in the paper 4096" in shown
    assert "units of 0..255 pixels" in shown


def test_a_signal_between_the_last_step_and_the_export_loses_nothing(arguments, tmp_path, monkeypatch, own_signals):
    """No checkpoint is due: what was learned lies in the export alone."""
    catch_signals()
    monkeypatch.setattr(pretrain, "judge_denoiser", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match=f"the model in {tmp_path} is whole$"):
        main("pretrain", *arguments, "--output_dir", tmp_path, "--max_train_steps", 2)
    assert not [*tmp_path.glob("checkpoint-*")]
    assert json.loads((tmp_path / "all_results.json").read_text())["steps"] == 2
    NIMForPreTraining.from_pretrained(tmp_path)
