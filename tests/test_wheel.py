# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""All that the package can do works from a wheel, in an environment and a folder that know nothing of the clone."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
from training_runs import save_digits

from transformers_nim import NIMForPreTraining
from transformers_nim_cli import COMMANDS


pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
MODEL = (
    "image_size=8,patch_size=2,num_channels=1,hidden_size=32,num_hidden_layers=2,num_attention_heads=4,"
    "intermediate_size=64,decoder_hidden_size=32,decoder_num_hidden_layers=1,decoder_num_attention_heads=4"
)
TRAIN = ["--dataset_name", "digits", "--max_train_steps", "2", "--mixed_precision", "no", "--report_to", "none",
         "--num_workers", "0", "--max_eval_samples", "8", "--eval_sigmas", "50"]  # fmt: skip
# Calls several commands in one process, as each would spend most of its time on imports.
MANY = """
import json, sys, transformers_nim_cli
for argv in json.loads(sys.argv[1]):
    sys.argv = ["transformers-nim", *argv]
    print("$", *argv, flush=True)
    try:
        transformers_nim_cli.main()
    except SystemExit as stopped:
        print("status", stopped.code or 0, flush=True)
"""

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, as building leaves files that the next build would take for its own.
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "-w", folder / "dist", folder], check=True)
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory) -> Run:
    """Run a program of a fresh environment in an empty folder."""
    folder = tmp_path_factory.mktemp("user")
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "-q"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--ignore-installed", wheel], check=True, env=variables)
    # What it needs is borrowed from here, without the .pth files that lead to the clone: a path is no `site` folder.
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    work = folder / "work"
    work.mkdir()
    save_digits(work / "digits", num_train=20, num_validation=10)
    variables |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": f"{environment / 'bin'}:{os.environ['PATH']}"}

    def start(*words: str, status: int = 0) -> subprocess.CompletedProcess:
        done = subprocess.run(words, cwd=work, env=variables, capture_output=True, text=True)
        assert done.returncode == status, done.stderr[-3000:]
        return done

    start.work = work  # type: ignore[attr-defined]
    return start


@pytest.fixture(scope="module")
def trained(run) -> Path:
    """Pretrain with the command, and fine-tune as Accelerate's own command starts it."""
    done = run("transformers-nim", "pretrain", *TRAIN, "--config_overrides", MODEL, "--output_dir", "nim")
    assert "NIM pretraining" in done.stdout
    config = run("python", "-c", "from transformers_nim.utils.processes import *; print(launch_file('cpu'))")
    # `accelerate launch` by a longer name, as the short one is not in the environment.
    launch = ["python", "-m", "accelerate.commands.launch", "--config_file", config.stdout.strip()]
    finetune = ["-m", "transformers_nim.commands.finetune", *TRAIN, "--model_name_or_path", "nim"]
    run(*launch, *finetune, "--mixup", "0", "--cutmix", "0", "--output_dir", "de3")
    return run.work


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = ZipFile(wheel).namelist()
    package = ROOT / "src"
    tracked = subprocess.run(["git", "ls-files", "."], cwd=package, capture_output=True, text=True, check=True)
    held = {name for name in names if ".dist-info/" not in name}
    assert held == set(tracked.stdout.splitlines())
    (licence,) = [name for name in names if name.endswith("licenses/LICENSE")]
    assert ZipFile(wheel).read(licence) == (ROOT / "LICENSE").read_bytes()


def test_it_is_the_wheel_that_runs(run):
    done = run("python", "-c", "import transformers_nim, torch; print(transformers_nim.__file__)")
    assert str(ROOT) not in done.stdout
    assert "environment" in done.stdout
    assert run("transformers-nim", "--version").stdout == "transformers-nim 0.1.0\n"
    assert run("transformers-nim", "finetun", status=2).stderr.endswith("did you mean finetune?\n")


def test_training(trained):
    results = json.loads((trained / "de3" / "all_results.json").read_text())
    assert {"accuracy_off", "accuracy_sigma_50"} <= results["metrics"].keys()
    assert (trained / "de3" / "README.md").is_file()


def test_measuring(run, trained):
    data = ["--model_name_or_path", "de3", "--dataset_name", "digits", "--split", "validation"]
    data += ["--max_eval_samples", "2"]
    attack = ["--steps", "1", "--num_draws", "1", "--num_queries", "2", "--num_check_images", "1", "--sigmas", "off"]
    done = run("python", "-m", "transformers_nim", "evaluate", *data, *attack, "--eps_grid", "--output_dir", "report")
    assert "EOT-PGD" in done.stdout
    assert (trained / "report" / "results.json").is_file()
    certify = ["certify", *data, "--n0", "2", "--n", "5", "--sigmas", "50", "--output_dir", "certificates"]
    done = run("transformers-nim", *certify, "--allow_untrained")
    assert "certified accuracy" in done.stdout
    # The launcher adds nothing to the one line of its processes.
    done = run("transformers-nim", *certify, "--launch", "cpu", status=2)
    assert done.stderr.splitlines()[-1].startswith(
        "transformers-nim certify: error: the denoiser of de3 removes no noise"
    )
    assert "Traceback" not in done.stderr


def test_all_else(run, trained):
    commands = [
        *([name, "--help"] for name in COMMANDS),
        ["convert", "--to_bfloat16", "de3", "--output_dir", "half"],
        ["cards", "de3", "--check"],
        # Offline, it shows all but what is on the Hub.
        ["push", "de3", "--repo_id", "nim/de3"],
        ["plan", "--config_name", "tiny-patch8-32", "--gpu_peak_tflops", "100"],
    ]
    done = run("python", "-c", MANY, json.dumps(commands))
    parts = done.stdout.split("$ ")[1:]
    assert [part.splitlines()[0] for part in parts] == [" ".join(words) for words in commands]
    for words, part in zip(commands, parts):
        assert "status 0" in part, part
        if words[1] == "--help":
            assert part.splitlines()[1].startswith(f"usage: transformers-nim {words[0]} ")
    assert "the Hub cannot be reached" in done.stdout
    assert "transformers-nim pretrain --launch ddp num_processes=8" in done.stdout
    assert NIMForPreTraining.from_pretrained(trained / "half").config.dtype is not None
