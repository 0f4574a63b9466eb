# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What may change when a training is resumed, and what makes it another one."""

import json
import shutil

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file
from training_runs import TINY, digits_dataset, main, save_digits, save_tiny_config, save_tiny_denoiser

from transformers_nim import NIMConfig, NIMForPreTraining
from transformers_nim.commands import finetune, pretrain
from transformers_nim.training import arguments
from transformers_nim.training.identity import (
    MAY_CHANGE,
    OPTIMIZATION,
    START,
    check_identity,
    optimization_settings,
    setting_changes,
    task_arguments,
    uncompared,
)
from transformers_nim.training.launch import TrainingJob
from transformers_nim.training.start import weights_hash


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("identity")
    found = {"config": save_tiny_config(folder / "config"), "start": save_tiny_denoiser(folder / "start")}
    # Same name, same shapes.
    found["other"] = str(folder / "elsewhere" / "start")
    shutil.copytree(found["start"], found["other"])
    weights = load_file(folder / "start" / "model.safetensors")
    save_file({name: -tensor for name, tensor in weights.items()}, found["other"] + "/model.safetensors")
    found["moved"] = str(folder / "moved")
    shutil.copytree(found["start"], found["moved"])
    NIMConfig(**{**TINY, "hidden_act": "relu"}).save_pretrained(folder / "elsewhere" / "config")
    found["other config"] = str(folder / "elsewhere" / "config")
    return found


def identity_of(task: str, folders: dict[str, str], *changes: str) -> dict:
    """Of a command's arguments, with what they make, as a checkpoint holds it."""
    command = {"pretraining": pretrain, "finetuning": finetune}[task]
    given = {
        "pretraining": ["--config_name", folders["config"]],
        "finetuning": ["--model_name_or_path", folders["start"], "--adversarial_steps", "1"],
    }[task]
    changes = [folders.get(value, value) for value in changes]
    args = command.parse_arguments([*given, "--dataset_name", "digits", "--output_dir", "out", *changes])
    start = command.read_start(args)
    if task == "pretraining":
        sigma = arguments.training_sigma(args, "gamma", None)
        model = pretrain.make_model(args, start, sigma)
    else:
        sigma = arguments.training_sigma(args, "uniform", start.config.finetuning_sigma)
        model = finetune.make_model(args, ["a", "b"], start, sigma)
    identity = TrainingJob(task, args, *[None] * 5)._task(model.config)
    return json.loads(json.dumps({**identity, "total_batch_size": 16, "data": "digits, 200 images"}))


@pytest.fixture(scope="module")
def begun(folders) -> dict[str, dict]:
    """Identities of two runs, by task."""
    return {task: identity_of(task, folders) for task in CHANGES}


# By task: arguments that are changed, and what is said of it.
CHANGES = {
    "pretraining": [
        (["--config_overrides", "norm_pix_loss=true"], "config.norm_pix_loss was False and is True"),
        (["--config_overrides", "hidden_act=relu"], "config.hidden_act was 'gelu' and is 'relu'"),
        (["--config_overrides", "num_attention_heads=2"], "config.num_attention_heads was 4 and is 2"),
        (["--config_overrides", "decoder_num_attention_heads=2"], "config.decoder_num_attention_heads was 4 and is 2"),
        (["--config_overrides", "patch_statistics=input"], "config.patch_statistics was 'noisy' and is 'input'"),
        (["--config_overrides", "hidden_size=64"], "config.hidden_size was 32 and is 64"),
        (["--config_name", "other config"], "config.hidden_act was 'gelu' and is 'relu'"),
        (["--config_name", "tiny-patch4-32"], "config.hidden_size was 32 and is 192"),
        (["--pretext", "mae"], "pretext was 'nim' and is 'mae'"),
        (["--mask_ratio", "0.5"], "mask_ratio was 0.75 and is 0.5"),
        (["--sigma_distribution", "uniform"], "sigma_distribution was 'gamma' and is 'uniform'"),
        (["--gamma_scale", "2"], "gamma_scale was 3.0 and is 2.0"),
        (["--gamma_concentration", "5"], "gamma_concentration was 25.0 and is 5.0"),
        (["--crop_scale", "0.5", "1"], r"crop_scale was \[0.2, 1.0\] and is \[0.5, 1.0\]"),
        (["--horizontal_flip", "0"], "horizontal_flip was 0.5 and is 0.0"),
        (["--init_from", "start"], "init_from was None and is 'weights of SHA-256 [0-9a-f]{64}'"),
        (["--seed", "1"], "seed was 0 and is 1"),
        (["--max_train_samples", "5"], "max_train_samples was None and is 5"),
        (["--eval_sigmas", "5"], r"eval_sigmas was None and is \[5.0\]"),
    ],
    "finetuning": [
        (["--model_name_or_path", "other"], "model_name_or_path was 'weights of .*' and is 'weights of .*'"),
        (["--train_on", "noisy"], "train_on was 'denoised' and is 'noisy'"),
        (["--sigma_high", "50"], "sigma_high was 30.0 and is 50.0"),
        (["--defense_sigma", "30"], "defense_sigma was 70.0 and is 30.0"),
        (["--drop_path_rate", "0.2"], "drop_path_rate was 0.1 and is 0.2"),
        (["--adversarial_steps", "2"], "adversarial_steps was 1 and is 2"),
        (["--adversarial_eps", "4"], "adversarial_eps was 8.0 and is 4.0"),
        (["--adversarial_norm", "L2"], "adversarial_norm was 'Linf' and is 'L2'"),
        (["--adversarial_step_size", "4"], "adversarial_step_size was None and is 4.0"),
        (["--adversarial_warmup_ratio", "0.5"], "adversarial_warmup_ratio was 0.0 and is 0.5"),
        (["--adversarial_through", "classifier"], "adversarial_through was 'defense' and is 'classifier'"),
        (["--adversarial_noise", "independent"], "adversarial_noise was 'shared' and is 'independent'"),
        (["--num_training_draws", "2"], "num_training_draws was 1 and is 2"),
        (["--draw_loss", "mean"], "draw_loss was 'vote' and is 'mean'"),
        (["--consistency_weight", "1"], "consistency_weight was 0.0 and is 1.0"),
        (["--consistency_entropy", "1"], "consistency_entropy was 0.0 and is 1.0"),
        (["--train_denoiser"], "train_denoiser was False and is True"),
        (["--denoising_weight", "1"], "denoising_weight was 0.0 and is 1.0"),
        (["--crop_scale", "0.5", "1"], r"crop_scale was \[0.08, 1.0\] and is \[0.5, 1.0\]"),
        (["--auto_augment", "none"], "auto_augment was 'rand-m9-mstd0.5-inc1' and is 'none'"),
        (["--random_erasing", "0"], "random_erasing was 0.25 and is 0.0"),
        (["--mixup", "0"], "mixup was 0.8 and is 0.0"),
        (["--cutmix", "0"], "cutmix was 1.0 and is 0.0"),
        (["--label_smoothing", "0"], "label_smoothing was 0.1 and is 0.0"),
        (["--ema_decay", "0.9"], "ema_decay was None and is 0.9"),
        (["--best_metric", "accuracy_off"], "best_metric was None and is 'accuracy_off'"),
        (["--config_overrides", "num_samples=4"], "config.num_samples was 1 and is 4"),
    ],
}


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [(task, *case) for task, cases in CHANGES.items() for case in cases],
    ids=lambda value: value if isinstance(value, str) and value in CHANGES else "",
)
def test_another_task_is_refused_by_name(task, changes, message, folders, begun):
    before, after = begun[task], identity_of(task, folders, *changes)
    with pytest.raises(
        ValueError, match=f"checkpoint-4 belongs to another run: .*{message}.*Pass what this run began"
    ):
        check_identity("checkpoint-4", before, after)
    with pytest.raises(ValueError, match="checkpoint-4 belongs to another run"):
        check_identity("checkpoint-4", after, before)


def test_each_change_is_told_once(folders, begun):
    """By its argument, not by the field of the config that follows from it too."""
    after = identity_of("finetuning", folders, "--defense_sigma", "30", "--mixup", "0")
    assert after["config"]["defense_sigma"]["value"] == 30.0
    with pytest.raises(ValueError, match="another run") as error:
        check_identity("here", begun["finetuning"], after)
    message = str(error.value)
    assert "defense_sigma was 70.0 and is 30.0; mixup was 0.8 and is 0.0; eval_sigmas was" in message
    assert "config." not in message


MAY_BE = {
    "pretraining": [
        "--learning_rate", "1", "--weight_decay", "0", "--max_train_steps", "7", "--lr_scheduler_type", "linear",
        "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "4", "--mixed_precision", "bf16",
        "--logging_steps", "3", "--checkpointing_steps", "epoch", "--num_workers", "0", "--output_dir", "elsewhere",
        "--max_grad_norm", "1", "--report_to", "none", "--torch_compile",
    ],
    "finetuning": ["--model_name_or_path", "moved", "--layer_decay", "0.5", "--min_learning_rate", "0"],
}  # fmt: skip


@pytest.mark.parametrize("task", MAY_BE)
def test_the_way_to_the_goal_may_change(task, folders, begun):
    check_identity("here", begun[task], identity_of(task, folders, *MAY_BE[task]))


PARTS_OF_DATA = ["dataset_config_name", "dataset_revision", "train_split_name", "validation_split_name",
                 "image_column_name", "label_column_name"]  # fmt: skip


@pytest.mark.parametrize("name", PARTS_OF_DATA)
def test_parts_of_data_are_known_by_name_where_not_all_images_are(name):
    """A stream is known by its beginning alone."""

    def task(*more):
        return task_arguments(finetune.parse_arguments(["--dataset_name", "d", "--output_dir", "o", *more]))

    other = [f"--{name}", "other"]
    check_identity("here", task(), task(*other))
    with pytest.raises(ValueError, match=f"another run: {name} was .* and is 'other'"):
        check_identity("here", task("--streaming"), task("--streaming", *other))


@pytest.mark.parametrize("command", [pretrain, finetune])
def test_every_argument_makes_the_run_or_may_change(command):
    """Whoever adds an argument and does nothing else has made it a part of the task."""
    args = command.parse_arguments(["--dataset_name", "digits", "--output_dir", "out"])
    args.added_later = 3
    of_task = {*task_arguments(args), *(name for name in START if hasattr(args, name))}
    assert of_task | (MAY_CHANGE & vars(args).keys()) == vars(args).keys()
    assert not of_task & MAY_CHANGE
    assert "added_later" in of_task


def test_no_name_of_what_may_change_is_out_of_date():
    known = [command.parse_arguments(["--dataset_name", "d", "--output_dir", "o"]) for command in (pretrain, finetune)]
    assert vars(known[0]).keys() | vars(known[1]).keys() >= MAY_CHANGE | {*START}
    assert optimization_settings(known[1], learning_rate=2.0)["learning_rate"] == 2.0
    led = {"base_learning_rate", "warmup_ratio", "num_train_epochs"}
    assert optimization_settings(known[1]).keys() == OPTIMIZATION - led


def test_what_only_one_version_has_is_told_and_not_refused():
    saved, now = {"seed": 0, "gone": 1, "config": {"a": 1}}, {"seed": 0, "added": 2, "config": {"a": 1, "b": 2}}
    check_identity("here", saved, now)
    assert uncompared(saved, now) == ["added", "config.b", "gone"]


def test_changes_are_records():
    saved, now = {"learning_rate": 0.1, "weight_decay": 0.05, "gone": 1}, {"learning_rate": 0.2, "weight_decay": 0.05}
    assert setting_changes(4, saved, now) == [
        {"after_step": 4, "name": "gone", "was": 1, "is": None},
        {"after_step": 4, "name": "learning_rate", "was": 0.1, "is": 0.2},
    ]


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    """A pretraining of 4 steps, and its arguments."""
    folder = tmp_path_factory.mktemp("run")
    given = [
        "--dataset_name", save_digits(folder / "data"), "--config_name", folders["config"],
        "--checkpointing_steps", "2", "--per_device_train_batch_size", "16",
        "--num_workers", "0", "--report_to", "none", "--logging_steps", "1",
    ]  # fmt: skip
    main("pretrain", *given, "--max_train_steps", 4, "--learning_rate", 1e-3, "--output_dir", folder / "whole")
    return given, folder / "whole"


def test_a_changed_task_is_refused_before_it_is_loaded(run, folders, tmp_path, monkeypatch):
    given, whole = run
    shutil.copytree(whole, tmp_path / "run")
    resumed = [*given, "--max_train_steps", 6, "--output_dir", tmp_path / "run", "--resume_from_checkpoint", "latest"]
    # Other head counts give tensors of the same sizes, and other sizes would be torch's error.
    for overrides in ("num_attention_heads=2", "hidden_size=64"):
        with pytest.raises(ValueError, match=r"checkpoint-4 belongs to another run: config\."):
            main("pretrain", *resumed, "--config_overrides", overrides)
    monkeypatch.setattr("transformers_nim.data.loading.ImageSource.load", None)
    with pytest.raises(ValueError, match=r"checkpoint-4 belongs to another run: horizontal_flip was 0\.5 and is 0\.0"):
        main("pretrain", *resumed, "--horizontal_flip", 0)


def test_images_are_known_by_their_content(run, tmp_path, monkeypatch):
    """They may lie elsewhere; others in a folder of the same name, number and columns are refused before models."""
    given, whole = run
    shutil.copytree(whole, tmp_path / "run")
    resumed = [*given, "--max_train_steps", 5, "--output_dir", tmp_path / "run", "--resume_from_checkpoint", "latest"]
    # Under no name that they had.
    parts = {"learn": digits_dataset(200), "look": digits_dataset(40, 200)}
    parts = {name: rows.rename_columns({"image": "digit", "label": "kind"}) for name, rows in parts.items()}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "elsewhere")
    names = ["--train_split_name", "learn", "--validation_split_name", "look", "--image_column_name", "digit"]
    results = main("pretrain", *resumed, "--dataset_name", tmp_path / "elsewhere", *names)
    assert (results["steps"], results["dataset"]) == (5, "elsewhere")
    other = tmp_path / "data"
    other.mkdir()
    for split, number, start in (("train", 200, 1), ("validation", 40, 200)):
        digits_dataset(number, start).to_parquet(other / f"{split}-00000-of-00001.parquet")
    monkeypatch.setattr("transformers_nim.commands.pretrain.make_model", None)
    told = r"checkpoint-4 belongs to another run: images was '200 images \(hash (\w+)\)' and is '200.*hash (?!\1)"
    with pytest.raises(ValueError, match=told):
        main("pretrain", *resumed, "--dataset_name", other)


def test_results_and_card_say_what_has_changed_and_when(run, tmp_path, capsys):
    given, whole = run
    assert json.loads((whole / "all_results.json").read_text())["changes"] == []
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    resumed = [*given, "--max_train_steps", 6, "--output_dir", folder, "--resume_from_checkpoint"]
    results = main("pretrain", *resumed, "latest", "--learning_rate", 5e-4)
    expected = [
        {"after_step": 4, "name": "learning_rate", "was": 1e-3, "is": 5e-4},
        {"after_step": 4, "name": "max_train_steps", "was": 4, "is": 6},
    ]
    assert results["changes"] == expected
    assert results["settings_from"] == 0
    told = "learning_rate was 0.001 and is 0.0005; max_train_steps was 4 and is 6"
    assert f"changed after step 4: {told}" in capsys.readouterr().out
    card = (folder / "README.md").read_text()
    assert "The settings changed on the way: after 4 updates `learning_rate` was 0.001 and is 0.0005" in card
    assert "changed on the way" not in (whole / "README.md").read_text()
    # They are part of checkpoints, and another time is added to the first.
    results = main("pretrain", *resumed, folder / "checkpoint-6", "--max_grad_norm", 1, "--learning_rate", 5e-4)
    assert results["changes"] == [*expected, {"after_step": 6, "name": "max_grad_norm", "was": None, "is": 1.0}]


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on(run, tmp_path, caplog):
    given, whole = run
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    manifest = folder / "checkpoint-4" / "checkpoint.json"
    saved = json.loads(manifest.read_text())
    state = saved["state"]
    state["identity"] = {name: state["identity"][name] for name in ("seed", "total_batch_size", "data")}
    for name in ("settings", "changes", "settings_from"):
        del state[name]
    manifest.write_text(json.dumps({"files": saved["files"], "state": state}))
    results = main("pretrain", *given, "--max_train_steps", 6, "--output_dir", folder, "--resume_from_checkpoint",
                   "latest", "--horizontal_flip", 0)  # fmt: skip
    (told,) = [one.getMessage() for one in caplog.records if "earlier version" in one.getMessage()]
    assert "checkpoint-4 was saved by an earlier version, without hashes of its files and images and" in told
    assert (results["steps"], results["settings_from"], results["changes"]) == (6, 4, [])
    assert "Those of the first 4 updates are not on record." in (folder / "README.md").read_text()
    # From now on it knows its task.
    with pytest.raises(ValueError, match=r"checkpoint-6 belongs to another run: horizontal_flip was 0\.0 and is 0\.5"):
        main("pretrain", *given, "--max_train_steps", 8, "--output_dir", folder, "--resume_from_checkpoint", "latest")


def test_weights_of_the_start_are_known_wherever_they_are(folders, tmp_path):
    assert weights_hash(folders["start"]) == weights_hash(folders["moved"]) != weights_hash(folders["other"])
    torch.manual_seed(0)
    model = NIMForPreTraining(NIMConfig(**TINY))
    model.save_pretrained(tmp_path, max_shard_size="20kB")
    assert not (tmp_path / "model.safetensors").exists()
    before = weights_hash(str(tmp_path))
    shard = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 255
    shard.write_bytes(content)
    assert weights_hash(str(tmp_path)) != before
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="has no weights"):
        weights_hash(str(tmp_path / "empty"))
