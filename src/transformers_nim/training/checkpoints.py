# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are there as a whole or not at all.

A checkpoint is written into a folder `checkpoint-N.partial`, which gets its name once every file is on disk. It holds
what Accelerate saves (weights as safetensors, optimizer state) and `checkpoint.json`: how far the run was, and the
size of every file, by which a truncated copy is recognized.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.utils import logging


logger = logging.get_logger(__name__)

_MANIFEST = "checkpoint.json"
_EMA_WEIGHTS = "ema.safetensors"
# What a full disk looks like to Python, torch and safetensors.
_WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; earlier ones are untouched."""


def save_checkpoint(
    accelerator: Any,
    output_dir: str | Path,
    step: int,
    state: Mapping[str, Any],
    ema_weights: Mapping[str, torch.Tensor] | None = None,
    total_limit: int | None = None,
) -> Path:
    """Writes `checkpoint-{step}`; to be called by all processes.

    Args:
        accelerator: Holds the prepared model and optimizer.
        output_dir: Folder of the run, which all processes share.
        step: Updates done.
        state: What else a run needs to go on, as JSON can hold it.
        ema_weights: Averaged weights, if there are any.
        total_limit: How many checkpoints to keep; the oldest go. Those of later steps go in any case: a run that has
            gone back to an earlier one replaces them, and `"latest"` must not find them.

    Returns:
        The checkpoint's path.

    Raises:
        CheckpointError: It could not be written, on a full disk for example.
    """
    output_dir = Path(output_dir)
    final, partial = output_dir / f"checkpoint-{step}", output_dir / f"checkpoint-{step}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    error: Exception | None = None
    try:
        partial.mkdir(parents=True, exist_ok=True)
        accelerator.save_state(str(partial))
        if accelerator.is_main_process and ema_weights is not None:
            save_file({name: tensor.contiguous() for name, tensor in ema_weights.items()}, partial / _EMA_WEIGHTS)
    except _WRITE_ERRORS as caught:
        error = caught
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and error is None:
        try:
            _seal(partial, {"step": step, **state})
        except _WRITE_ERRORS as caught:
            error = caught
    # All processes have to agree, or those without an error would wait for the others without end.
    failed = torch.tensor(float(error is not None), device=accelerator.device)
    if accelerator.reduce(failed, "sum").item() > 0:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        last = find_checkpoint(output_dir)
        raise CheckpointError(
            f"could not write {final}: {error or 'another process failed'}. Is the disk full? The last whole"
            f" checkpoint is {last or 'none'}; make room and go on with --resume_from_checkpoint latest"
        ) from error
    if accelerator.is_main_process:
        # One that is not whole, or of a run that this one repeats.
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _sync(output_dir)
        found = _checkpoints(output_dir)
        newest = found.index(final)
        kept = found[newest:] if total_limit is None else found[newest : newest + total_limit]
        for path in set(found) - set(kept):
            shutil.rmtree(path, ignore_errors=True)
    accelerator.wait_for_everyone()
    return final


def _seal(folder: Path, state: Mapping[str, Any]) -> None:
    """Brings every file to disk and writes the manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    (folder / _MANIFEST).write_text(json.dumps({"files": sizes, "state": dict(state)}, indent=2) + "\n")
    _sync(folder / _MANIFEST)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checkpoints(output_dir: Path) -> list[Path]:
    """Folders with a checkpoint's name, the newest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def checkpoint_problem(path: str | Path) -> str | None:
    """What is wrong with a checkpoint, or None if it is whole."""
    path = Path(path)
    if not path.is_dir():
        return "there is no such folder"
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        sizes = manifest["files"].items()
        manifest["state"]["step"]
    except FileNotFoundError:
        return f"it has no {_MANIFEST}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {_MANIFEST} is damaged"
    for name, size in sizes:
        file = path / name
        if not file.is_file():
            return f"the file {name} is missing"
        if file.stat().st_size != size:
            return f"the file {name} has {file.stat().st_size} bytes instead of {size}"
    return None


def find_checkpoint(output_dir: str | Path, which: str = "latest") -> Path | None:
    """The checkpoint to resume from.

    Args:
        output_dir: Folder of the run.
        which: `"latest"` for the newest whole one, or the path of a checkpoint.

    Returns:
        Its path, or None if `"latest"` finds none.

    Raises:
        ValueError: The checkpoint that was named is not whole.
    """
    if which != "latest":
        problem = checkpoint_problem(which)
        if problem:
            raise ValueError(f"cannot resume from {which}: {problem}. Pass 'latest' for the newest whole checkpoint")
        return Path(which)
    for path in _checkpoints(Path(output_dir)):
        problem = checkpoint_problem(path)
        if problem is None:
            return path
        logger.warning(f"skipping {path}: {problem}")
    return None


def load_checkpoint(accelerator: Any, path: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor] | None]:
    """Loads a whole checkpoint into the prepared model and optimizer; to be called by all processes.

    Returns:
        The state that was saved with it (with `step`), and the averaged weights if there are any.
    """
    path = Path(path)
    accelerator.load_state(str(path))
    ema = path / _EMA_WEIGHTS
    return read_state(path), load_file(ema) if ema.is_file() else None


def read_state(path: str | Path) -> dict[str, Any]:
    """The state that was saved with a whole checkpoint (with `step`), without its weights."""
    return json.loads((Path(path) / _MANIFEST).read_text())["state"]


def replace_folder(accelerator: Any, folder: Path, write: Callable[[Path], object]) -> None:
    """Has `write(path)` fill a folder, called by all processes, and puts it where `folder` was, whole.

    Raises:
        CheckpointError: It could not be written; what was there before still is.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        write(partial)
    except _WRITE_ERRORS as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"could not write {folder}: {error}. Is the disk full?") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        old = folder.with_name(f"{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def require_empty_or_resumed(output_dir: str | Path, resume: str | None) -> None:
    """Keeps a new run from writing over the checkpoints of an old one.

    Raises:
        ValueError: There are checkpoints, and the run does not resume from one.
    """
    found = _checkpoints(Path(output_dir))
    if found and resume is None:
        raise ValueError(
            f"{output_dir} holds the checkpoints of an earlier run ({found[0].name}); pass --resume_from_checkpoint"
            " latest to go on with it, or another --output_dir"
        )
