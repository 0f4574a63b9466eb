# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What users do wrong is told in one line, by every command."""

import importlib
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
from conftest import save_with_processor, tiny_model
from training_runs import environment, fresh_accelerator, save_digits, save_tiny_config

from transformers_nim.utils.cli import run_command
from transformers_nim_cli import COMMANDS


# Where a check comes before anything is loaded, neither is looked for.
MODEL = ["--model_name_or_path", "no/such/model"]
DATA = ["--dataset_name", "no/such/data", "--output_dir", "{tmp}/out"]
# Here both are there.
TRAIN = ["--dataset_name", "{digits}", "--output_dir", "{tmp}/out", "--report_to", "none", "--max_train_steps", "1",
         "--mixed_precision", "no", "--num_workers", "0"]  # fmt: skip
PRETRAIN = [*TRAIN, "--config_name", "{config}"]
FINETUNE = [*TRAIN, "--model_name_or_path", "{model}"]
MEASURE = ["--model_name_or_path", "{model}", "--dataset_name", "{digits}", "--split", "validation",
           "--output_dir", "{tmp}/out"]  # fmt: skip
CONVERT = ["--output_dir", "{tmp}/out"]
# Command, arguments, status, and a part of the message.
CASES = [
    ("pretrain", [], 2, "the following arguments are required: --output_dir"),
    ("pretrain", ["--output_dir", "{tmp}/out"], 2, "give either a dataset_name or a train_dir"),
    ("pretrain", [*DATA, "--config_name", "{file}/hugee"], 2, "is no size (tiny, small, base"),
    ("pretrain", [*DATA, "--config_overrides", "hiden_size=3"], 2, "'hiden_size=3' is not FIELD=VALUE"),
    ("pretrain", [*DATA, "--config_overrides", "patch_size=5"], 2, "patch_size 5 must divide image_size 224"),
    ("pretrain", [*DATA, "--per_device_train_batch_size", "0"], 2, "must be an int of at least 1, got 0"),
    ("pretrain", [*DATA, "--learning_rate", "-1"], 2, "learning_rate must be greater than 0, got -1"),
    ("pretrain", [*DATA, "--learnin_rate", "1"], 2, "did you mean --learning_rate?"),
    ("pretrain", [*DATA, "--mask_ratio", "2"], 2, "mask_ratio must be between 0 and 1, got 2"),
    ("pretrain", [*DATA, "--gamma_scale", "-1"], 2, "scale of a gamma sigma must be"),
    ("pretrain", [*DATA, "--output_dir", "{file}"], 2, "{file} is a file; pass a folder"),
    ("pretrain", [*DATA, "--launch", "dpp"], 2, "--launch dpp: no such launch file; pass a path, or a name"),
    ("pretrain", [*DATA, "--launch", "ddp", "num_proceses=2"], 2, "did you mean num_processes=VALUE?"),
    ("pretrain", [*DATA, "--launch", "ddp", "num_processes=two"], 2, "--launch: argument --num"),
    ("pretrain", [*PRETRAIN, "--dataset_name", "{tmp}"], 2, "{tmp}"),
    ("pretrain", [*PRETRAIN, "--dataset_name", "{tmp}/nothing"], 2, "{tmp}/nothing"),
    ("pretrain", [*PRETRAIN, "--dataset_name", "{file}"], 2, "must be a .parquet file"),
    ("pretrain", [*PRETRAIN, "--train_split_name", "nothing"], 2, "there are ['train', 'validation']"),
    ("pretrain", [*PRETRAIN, "--image_column_name", "nothing"], 2, "there are ['image', 'label']"),
    ("pretrain", [*PRETRAIN, "--resume_from_checkpoint", "{tmp}/nothing"], 2, "cannot resume from {tmp}/nothing"),
    ("pretrain", [*PRETRAIN, "--init_from", "{tmp}/no/such/model"], 2, "{tmp}/no/such/model"),
    ("pretrain", [*PRETRAIN, "--report_to", "nothing"], 2, "report_to: nothing is not installed"),
    ("finetune", DATA, 2, "--train_on denoised needs a denoiser"),
    ("finetune", [*MODEL, *DATA, "--layer_decay", "0"], 2, "layer_decay must be greater than 0, got 0"),
    ("finetune", [*FINETUNE, "--sigma_distribution", "uniform", "--sigma_low", "50"], 2, "high of a uniform sigma"),
    ("finetune", [*FINETUNE, "--label_column_name", "image"], 2, "'image' does not hold class labels"),
    ("finetune", [*FINETUNE, "--best_metric", "accuracy"], 2, "best_metric must be one of ['accuracy_off'"),
    ("finetune", [*FINETUNE, "--model_name_or_path", "{broken}"], 2, "{broken}"),
    ("finetune", [*FINETUNE, "--model_name_or_path", "{file}"], 2, "{file}"),
    ("evaluate", [], 2, "--model_name_or_path is missing"),
    ("evaluate", [*MODEL, *DATA, "--sgima", "50"], 2, "did you mean --sigma?"),
    ("evaluate", [*MODEL, *DATA, "--attacks", "nothing"], 2, "nothing"),
    ("evaluate", [*MODEL, *DATA, "--surrogates", "x"], 2, "--surrogates takes NAME=MODEL, got 'x'"),
    ("evaluate", [*MEASURE, "--model_name_or_path", "{broken}"], 2, "{broken}"),
    ("evaluate", [*MEASURE, "--split", "nothing"], 2, "there are ['train', 'validation']"),
    ("evaluate", [*MODEL, *DATA, "--eps", "800"], 2, "eps must be at most 255 for Linf"),
    ("evaluate", [*MODEL, *DATA, "--eps_grid", "-4"], 2, "eps must be positive and finite"),
    ("evaluate", [*MODEL, *DATA, "--sigma", "high"], 2, "sigma must be \"off\" or a number of at least 0, got 'high'"),
    ("evaluate", [*MODEL, *DATA, "--min_clean_accuracy", "50"], 2, "--min_clean_accuracy must be from 0 to 1, got 50"),
    ("evaluate", [*MODEL, *DATA, "--steps", "0"], 2, "steps must be an int of at least 1, got 0"),
    ("evaluate", ["--compare", "{file}", "{file}"], 2, "{file} is no JSON"),
    ("certify", [*MODEL, *DATA, "--alpha", "2"], 2, "--alpha is a probability of error between 0 and 1"),
    ("certify", [*MODEL, *DATA, "--n0", "0"], 2, "--n0 must be at least 1, got 0"),
    ("certify", [*MODEL, *DATA, "--sigmas", "0"], 2, "--sigmas must be greater than 0"),
    ("certify", [*MEASURE, "--dataset_name", "{tmp}/nothing"], 2, "{tmp}/nothing"),
    ("convert", CONVERT, 2, "one of the arguments --pretraining --vit_mae --denoiser"),
    ("convert", [*CONVERT, "--pretraining", "{tmp}/nothing"], 2, "no such checkpoint: {tmp}/nothing"),
    ("convert", [*CONVERT, "--pretraining", "{file}"], 2, "{file} cannot be read as a checkpoint"),
    ("convert", ["--to_bfloat16", "{model}", "--output_dir", "{file}"], 2, "{file} is a file; pass a folder"),
    ("cards", ["{tmp}"], 2, "{tmp} has no card.json"),
    ("push", ["{tmp}/nothing", "--repo_id", "a/b"], 2, "{tmp}/nothing is no folder"),
    ("push", ["{model}", "--repo_id", "a b"], 2, "'a b' is no name of a repository; pass OWNER/NAME"),
    ("plan", ["--num_gpus", "0"], 2, "--num_gpus must be at least 1, got 0"),
    ("plan", ["--num_gpus", "7", "--gpu_peak_tflops", "9"], 2, "7 GPUs cannot share a --total_batch_size of 4096"),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("places")
    model = tiny_model(num_channels=1, image_size=8, patch_size=2, num_labels=10)
    (folder / "file.txt").write_text("x")
    save_with_processor(model, folder / "broken")
    (folder / "broken" / "model.safetensors").write_bytes(b"x")
    return {
        "digits": save_digits(folder / "digits", num_train=20, num_validation=10),
        "config": save_tiny_config(folder),
        "model": save_with_processor(model, folder / "model"),
        "broken": str(folder / "broken"),
        "file": str(folder / "file.txt"),
    }


def module_of(command: str):
    return importlib.import_module(f"transformers_nim.{COMMANDS[command][0]}")


def run(monkeypatch, capsys, command: str, arguments: list[str]) -> tuple[int, str]:
    """Call a command as transformers-nim does, and return its status and what it prints on stderr."""
    monkeypatch.setattr(sys, "argv", [f"transformers-nim {command}"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with fresh_accelerator(), pytest.raises(SystemExit) as stopped:
        run_command(partial(module_of(command).main, arguments))
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize(("command", "arguments", "status", "message"), CASES)
def test_one_line(monkeypatch, capsys, tmp_path, places, command, arguments, status, message):
    places = {**places, "tmp": str(tmp_path)}
    found, text = run(monkeypatch, capsys, command, [argument.format(**places) for argument in arguments])
    assert found == status, text
    *_, line = text.splitlines()
    assert line.startswith(f"transformers-nim {command}: error: ")
    assert message.format(**places) in line
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()


NEEDS = {
    "pretrain": (["accelerate", "datasets", "matplotlib"], DATA),
    "finetune": (["accelerate", "datasets", "matplotlib", "timm"], [*MODEL, *DATA]),
    "evaluate": (["accelerate", "datasets", "matplotlib"], [*MODEL, *DATA]),
    "evaluate --attacks": (["torchattacks"], [*MODEL, *DATA, "--attacks", "torchattacks_pgd"]),
    "certify": (["accelerate", "datasets", "matplotlib", "scipy"], [*MODEL, *DATA]),
}


@pytest.mark.parametrize(
    ("command", "package"), [(command, one) for command, (all_, _) in NEEDS.items() for one in all_]
)
def test_a_missing_extra_is_told_first(monkeypatch, capsys, command, package, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    arguments = [argument.format(tmp=tmp_path) for argument in NEEDS[command][1]]
    command = command.split()[0]
    status, text = run(monkeypatch, capsys, command, arguments)
    extra = {"scipy": "certify", "torchattacks": "attacks"}.get(package, "train")
    assert status == 1
    more = " && pip install --no-deps torchattacks==3.5.1" if package == "torchattacks" else ""
    assert text == (
        f"transformers-nim {command}: error: this needs the package {package!r}: pip install"
        f" 'transformers-nim[{extra}]'{more}\n"
    )


def test_a_folder_that_cannot_be_written(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        "transformers_nim.utils.output_folder.os", SimpleNamespace(**{**vars(os), "access": lambda *_: False})
    )
    arguments = [argument.format(tmp=tmp_path) for argument in DATA]
    status, text = run(monkeypatch, capsys, "pretrain", arguments)
    assert status == 2
    assert f"{tmp_path} cannot be written; pass another folder" in text


@pytest.mark.parametrize(
    ("arguments", "status", "lines"),
    [
        (["finetun"], 2, ["transformers-nim: error: no command 'finetun'; did you mean finetune?"]),
        (["quux"], 2, [f"transformers-nim: error: no command 'quux'; there are {', '.join(COMMANDS)}"]),
        (["--versoin"], 2, ["transformers-nim: error: unrecognized arguments: --versoin"]),
    ],
)
def test_commands_that_there_are_not(monkeypatch, capsys, arguments, status, lines):
    monkeypatch.setattr(sys, "argv", ["/bin/transformers-nim", *arguments])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module("transformers_nim_cli").main()
    assert stopped.value.code == status
    assert capsys.readouterr().err.splitlines() == lines


def test_the_list_of_commands_needs_neither_torch_nor_transformers():
    code = (
        "import sys, transformers_nim_cli\nsys.argv = ['transformers-nim', '--help']\ntransformers_nim_cli.main()\n"
        "assert not {'torch', 'transformers', 'transformers_nim'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, (module, summary) in COMMANDS.items():
        assert f"  {name:8}  {summary}\n" in done.stdout
        assert importlib.util.find_spec(f"transformers_nim.{module}") is not None


@pytest.mark.slow
def test_in_processes_of_their_own(tmp_path, places):
    """By each way of calling, with --launch too: the launcher adds nothing."""
    arguments = ["--dataset_name", f"{tmp_path}/nothing", "--config_name", places["config"], "--output_dir", "out"]
    module = "transformers_nim.commands.pretrain"
    for call, program in (
        (["-m", "transformers_nim", "pretrain"], "python -m transformers_nim pretrain"),
        (["-m", module, "--launch", "cpu_2_processes", "main_process_port=0"], f"python -m {module}"),
    ):
        done = subprocess.run(
            [sys.executable, *call, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment()
        )
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        # Other lines are warnings of torch.
        (line,) = [line for line in done.stderr.splitlines() if "rror" in line]
        assert line.startswith(f"{program}: error: ")
        assert f"{tmp_path}/nothing" in line


@pytest.mark.slow
def test_a_process_that_is_killed_is_told(tmp_path, places):
    """It cannot say so itself."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\nif os.environ.get('RANK') == '1':\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    arguments = ["--launch", "cpu_2_processes", "main_process_port=0", "--dataset_name", places["digits"]]
    arguments += ["--config_name", places["config"], "--output_dir", "out"]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "transformers_nim", "pretrain", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(PYTHONPATH=path),
    )
    assert done.returncode == 128 + 9, done.stderr
    assert done.stderr.splitlines()[-1] == "a process was ended by SIGKILL"
