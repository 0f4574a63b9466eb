# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Ctrl-C, SIGTERM and SIGUSR1 end a training with a checkpoint and a line, however it was started."""

import re
import shlex
import signal
import subprocess
import sys
import time

import psutil
import pytest
from training_runs import command, environment, losses, save_digits, save_tiny_config

from transformers_nim.training.checkpoints import checkpoint_problem


pytestmark = pytest.mark.slow

OURS = [sys.executable, "-m", "transformers_nim", "pretrain"]
# How it was started, the signal, whether it goes to all processes or to the one that was started, and its status.
WAYS = {
    "ctrl-c": (1, [], signal.SIGINT, True, 130),
    "a batch system": (1, [], signal.SIGUSR1, True, 138),
    "launch, one process": (1, ["--launch", "cpu"], signal.SIGTERM, False, 143),
    "launch, two processes": (2, ["--launch", "cpu_2_processes", "main_process_port=0"], signal.SIGINT, True, 130),
    "launch, a batch system": (2, ["--launch", "cpu_2_processes", "main_process_port=0"], signal.SIGUSR1, False, 138),
    # What Accelerate itself says of it, it says.
    "accelerate, one process": (1, None, signal.SIGTERM, False, None),
    "accelerate, two processes": (2, None, signal.SIGTERM, True, None),
}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    """Of a run without an end."""
    data, config = (tmp_path_factory.mktemp(name) for name in ("data", "config"))
    return [
        "--dataset_name", save_digits(data), "--config_name", save_tiny_config(config), "--max_train_steps", "1000000",
        "--logging_steps", "1", "--per_device_train_batch_size", "8", "--num_workers", "1", "--mixed_precision", "no",
        "--report_to", "none",
    ]  # fmt: skip


def default_signals() -> None:
    """A test run in the background may ignore them, and so would its processes."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(words: list[str], output_dir) -> subprocess.Popen:
    """Starts a training, and waits until it has begun."""
    process = subprocess.Popen(
        words,
        env=environment(),
        preexec_fn=default_signals,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (output_dir / "log.jsonl").exists() or len(losses(output_dir)) < 2:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def wait_for(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive


@pytest.mark.parametrize("way", WAYS)
def test_a_signal_ends_a_training_with_a_checkpoint_and_a_line(arguments, tmp_path, way):
    num_processes, launcher, number, to_all, status = WAYS[way]
    options = [*arguments, "--output_dir", str(tmp_path / "out out"), "--hub_token", "SECRET"]
    words = (
        [*OURS, *options, *launcher]
        if launcher is not None
        else command("pretrain", *options, num_processes=num_processes)
    )
    process = start(words, tmp_path / "out out")
    family = psutil.Process(process.pid)
    family = [family, *family.children(recursive=True)]
    for one in family if to_all else family[:1]:
        one.send_signal(number)
    output, _ = process.communicate(timeout=120)
    wait_for(family)

    (line,) = [line for line in output.splitlines() if "is saved in" in line]
    path = re.search(r"step ([\d,]+) of 1,000,000 is saved in (.*). Go on with: ", line)
    assert checkpoint_problem(path[2]) is None
    assert path[2].endswith(f"checkpoint-{path[1].replace(',', '')}")
    assert not [*tmp_path.glob("out out/*.partial")]
    # What is logged is not lost: all processes have stopped after the same step, soon.
    assert losses(tmp_path / "out out")[-1][0] == int(path[1].replace(",", ""))
    if status is not None:
        assert process.returncode == status
        assert "Traceback" not in output
    assert output.count("Traceback") <= 1
    again = shlex.split(line[path.end() :])
    assert "SECRET" not in output
    assert again[-2:] == ["--resume_from_checkpoint", "latest"]
    tokenless = [word.replace("SECRET", "TOKEN") for word in words]
    assert again[:-2] == ["python", *tokenless[1:]]
