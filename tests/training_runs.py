# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Runs the training scripts as users do, on scikit-learn's digits."""

import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

import datasets
import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch.utils._python_dispatch import TorchDispatchMode

from transformers_nim import NIMConfig, NIMForPreTraining, NIMImageProcessor
from transformers_nim.model import noise
from transformers_nim.training.run import TrainingRun


EXAMPLES = Path(__file__).parents[1] / "examples"

# A model for 8x8 grey pictures that takes milliseconds per step.
TINY = {
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 64,
}


@functools.cache
def digit_pictures() -> tuple[list[Image.Image], list[int]]:
    digits = load_digits()
    pixels = np.round(digits.images * 255 / 16).astype(np.uint8)
    return [Image.fromarray(image) for image in pixels], digits.target.tolist()


def digits_dataset(num: int = 200, start: int = 0) -> datasets.Dataset:
    pictures, labels = digit_pictures()
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[f"digit {i}" for i in range(10)])}
    )
    rows = {"image": pictures[start : start + num], "label": labels[start : start + num]}
    return datasets.Dataset.from_dict(rows, features=features)


def save_digits(folder: Path, num_train: int = 200, num_validation: int = 40) -> str:
    """A folder of parquet files with a training and a validation split."""
    folder.mkdir(parents=True, exist_ok=True)
    digits_dataset(num_train).to_parquet(folder / "train-00000-of-00001.parquet")
    digits_dataset(num_validation, start=num_train).to_parquet(folder / "validation-00000-of-00001.parquet")
    return str(folder)


def save_tiny_config(folder: Path) -> str:
    NIMConfig(**TINY).save_pretrained(folder)
    return str(folder)


def save_tiny_denoiser(folder: Path) -> str:
    torch.manual_seed(0)
    model = NIMForPreTraining(NIMConfig(**TINY))
    model.save_pretrained(folder)
    NIMImageProcessor.from_config(model.config).save_pretrained(folder)
    return str(folder)


def command(script: str, *arguments: object, num_processes: int = 1) -> list[str]:
    """`accelerate launch` of one of the scripts on CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # With --cpu, Accelerate starts a single process, whatever number it is given (others need MPI).
    kind = "--cpu" if num_processes == 1 else "--multi_gpu"
    return [
        sys.executable, "-m", "accelerate.commands.launch", kind, "--num_processes", str(num_processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port),
        str(EXAMPLES / f"{script}.py"), *map(str, in_fp32(script, arguments)),
    ]  # fmt: skip


def in_fp32(script: str, arguments: Sequence[object]) -> list[object]:
    """The arguments of a script that trains, in fp32 if they do not say otherwise, whatever is faster on a machine."""
    return [*(["--mixed_precision", "no"] if script in ("pretrain", "finetune") else []), *arguments]


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | variables


def launch(script: str, *arguments: object, num_processes: int = 1, env: dict[str, str] | None = None):
    """Runs a script to its end and returns what it printed."""
    done = subprocess.run(
        command(script, *arguments, num_processes=num_processes),
        capture_output=True,
        text=True,
        env=env or environment(),
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def kill_after(checkpoint: str, output_dir, *arguments, num_processes: int = 1, script: str = "pretrain") -> None:
    """Starts a run and kills all its processes soon after a checkpoint has appeared."""
    process = subprocess.Popen(
        command(script, *arguments, "--output_dir", output_dir, num_processes=num_processes),
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (output_dir / checkpoint).exists():
        assert process.poll() is None, "the run has ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # The launcher's processes hold the folder until the kernel has cleared them away.
    deadline = time.monotonic() + 10
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.01)
    assert not (output_dir / "all_results.json").exists()


def main(script: str, *arguments: object) -> dict:
    """Runs a script in this process, on what a new process would find."""
    with fresh_accelerator():
        return load_script(script).main([str(argument) for argument in in_fp32(script, arguments)])


@contextmanager
def fresh_accelerator() -> Iterator[None]:
    """What a new process would find, and no traces afterwards."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def load_script(name: str) -> ModuleType:
    """The command that a script in `examples/` runs."""
    module = {"evaluate_robustness": "evaluate", "plan_run": "plan", "push_checkpoint": "push"}.get(name, name)
    return importlib.import_module(f"transformers_nim.commands.{module}")


class Waits(TorchDispatchMode):
    """Lists what would make the host wait for an accelerator: a look at a number, numbers copied from the host, and
    results whose shape depends on numbers."""

    NAMES = ("_local_scalar_dense", "is_nonzero", "equal", "lift_fresh", "nonzero", "masked_select", "_unique2")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.NAMES:
            self.found.append((name, "".join(traceback.format_stack(limit=8))))
        return func(*args, **(kwargs or {}))


def watch_updates(monkeypatch) -> list[Waits]:
    """Of each update that follows, what would wait if the CPU were an accelerator."""
    watched = []
    update = TrainingRun._update

    def watched_update(self, stream, compute_loss):
        # The next batches come from the host.
        batches = [next(stream) for _ in range(self.accelerator.gradient_accumulation_steps)]
        with Waits() as waits:
            update(self, iter(batches), compute_loss)
        watched.append(waits)

    monkeypatch.setattr(TrainingRun, "_update", watched_update)
    monkeypatch.setattr(noise, "_on_host", lambda tensor: False)
    return watched


def losses(output_dir: Path) -> list[tuple[int, float]]:
    """Steps and training losses of a run's log."""
    rows = [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def evaluations(output_dir: Path) -> list[dict]:
    rows = [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" not in row]


def same_weights(first: Path, second: Path) -> bool:
    """Whether two models or checkpoints hold the same bits."""
    one, other = (load_file(folder / "model.safetensors") for folder in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
