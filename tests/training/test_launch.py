# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Which precision a run gets."""

import argparse
import json
from datetime import timedelta
from pathlib import Path

import accelerate
import pytest
from accelerate.state import AcceleratorState, GradientState

from transformers_nim.training import launch
from transformers_nim.training.precision import Precision


MEASURED = Precision("bf16", "measured: ...")


@pytest.fixture(autouse=True)
def measurements(monkeypatch):
    """On a CPU; how often it was measured."""
    calls = []
    monkeypatch.setattr(launch, "train_on_cpu", lambda: True)
    monkeypatch.setattr(launch, "faster_cpu_precision", lambda: calls.append(None) or MEASURED)
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    yield calls
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def arguments(output_dir: Path, mixed_precision: str | None = None, resume: str | None = None) -> argparse.Namespace:
    return argparse.Namespace(
        output_dir=str(output_dir),
        mixed_precision=mixed_precision,
        resume_from_checkpoint=resume,
        report_to=["none"],
        gradient_accumulation_steps=1,
    )


def save(folder: Path, **state) -> str:
    folder.mkdir()
    (folder / "checkpoint.json").write_text(json.dumps({"files": {}, "state": {"step": 4, **state}}))
    return str(folder)


@pytest.mark.parametrize("asked", [None, "auto"])
def test_a_cpu_is_measured(asked, tmp_path, measurements, monkeypatch):
    # As the files for CPUs say to Accelerate.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    args = arguments(tmp_path, asked)
    precision = launch.choose_precision(args)
    assert precision == MEASURED
    assert len(measurements) == 1
    assert launch.make_accelerator(args, precision).mixed_precision == "bf16"


def test_processes_wait_for_one_that_reads_for_all(tmp_path, monkeypatch):
    asked = []
    of_accelerate = accelerate.PartialState
    monkeypatch.setattr(
        accelerate, "PartialState", lambda **options: asked.append(options["timeout"]) or of_accelerate(**options)
    )
    args = arguments(tmp_path)
    accelerator = launch.make_accelerator(args, launch.choose_precision(args))
    assert [*asked, accelerator.init_handler.timeout] == [timedelta(hours=2)] * 2


@pytest.mark.parametrize("asked", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_what_is_asked_for(asked, on_cpu, tmp_path, measurements, monkeypatch):
    monkeypatch.setattr(launch, "train_on_cpu", lambda: on_cpu)
    save(tmp_path / "checkpoint-4", mixed_precision="no" if asked == "bf16" else "bf16")
    assert launch.choose_precision(arguments(tmp_path, asked, "latest")) == Precision(asked)
    assert not measurements


def test_a_gpu_is_left_to_the_launch_file(tmp_path, measurements, monkeypatch):
    monkeypatch.setattr(launch, "train_on_cpu", lambda: False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    args = arguments(tmp_path)
    precision = launch.choose_precision(args)
    assert precision == Precision(None)
    assert launch.make_accelerator(args, precision).mixed_precision == "bf16"
    with pytest.raises(ValueError, match=r"mixed_precision auto is for CPUs.*pass no, bf16 or fp16, or leave it out"):
        launch.choose_precision(arguments(tmp_path, "auto"))
    assert not measurements


@pytest.mark.parametrize("asked", [None, "auto"])
@pytest.mark.parametrize("saved", ["no", "bf16"])
def test_a_resumed_run_keeps_its_precision(asked, saved, tmp_path, measurements):
    path = save(tmp_path / "checkpoint-4", mixed_precision=saved)
    for resume in ("latest", path):
        precision = launch.choose_precision(arguments(tmp_path, asked, resume))
        assert precision == Precision(saved, f"as in {path}")
    assert not measurements


def test_a_run_of_an_earlier_version_goes_on_as_its_launch_file_says(tmp_path, measurements):
    save(tmp_path / "checkpoint-4")
    assert launch.choose_precision(arguments(tmp_path, "auto", "latest")) == Precision(None)
    assert not measurements


@pytest.mark.parametrize(("launched", "measured"), [("no", True), ("bf16", False), ("fp16", False)])
def test_what_the_launch_file_asks_for_comes_first(launched, measured, tmp_path, measurements, monkeypatch):
    # "no" is what `accelerate launch` says of its own accord.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    precision = launch.choose_precision(arguments(tmp_path, None, None))
    assert precision == (MEASURED if measured else Precision(None))
    assert bool(measurements) == measured
    assert launch.choose_precision(arguments(tmp_path, "auto", None)) == MEASURED


@pytest.mark.parametrize("state", [None, {"mixed_precision": "fp16"}], ids=["none", "of a GPU"])
def test_a_checkpoint_that_says_nothing_for_a_cpu(state, tmp_path, measurements):
    if state is not None:
        save(tmp_path / "checkpoint-4", **state)
    assert launch.choose_precision(arguments(tmp_path, "auto", "latest")) == MEASURED
    assert len(measurements) == 1


def test_a_damaged_checkpoint(tmp_path, measurements):
    with pytest.raises(ValueError, match=r"cannot resume from .*checkpoint-9: there is no such folder"):
        launch.choose_precision(arguments(tmp_path, None, str(tmp_path / "checkpoint-9")))
    assert not measurements


@pytest.mark.parametrize(("flag", "expected"), [("true", True), ("false", False)])
def test_cpus_can_be_asked_for(flag, expected, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", flag)
    assert launch.train_on_cpu() == expected
