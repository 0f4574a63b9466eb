# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Write checkpoints so that they are there as a whole or not at all, and find them again.

A checkpoint is written into a folder `checkpoint-N.partial`, which is renamed once every file is on disk. It holds
what Accelerate saves (weights as safetensors, optimizer state) and `checkpoint.json`: the state of the run, and the
size and SHA-256 of every file, which show a truncated copy and damaged bytes.
"""

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from ..utils.extras import require
from ..utils.output_folder import check_there, not_shared
from ..utils.processes import process_rank


logger = logging.get_logger(__name__)

_MANIFEST = "checkpoint.json"
_EMA_WEIGHTS = "ema.safetensors"
# Errors of Python, torch and safetensors when the disk is full.
_WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; earlier ones are unchanged."""


def save_checkpoint(
    accelerator: Any,
    output_dir: str | Path,
    step: int,
    state: Mapping[str, Any],
    ema_weights: Mapping[str, torch.Tensor] | None = None,
    total_limit: int | None = None,
) -> Path:
    """Write `checkpoint-{step}`; called by all processes.

    Args:
        accelerator: Accelerator with the prepared model and optimizer.
        output_dir: Folder of the run, which all processes share.
        step: Number of updates so far.
        state: What else a run needs to resume; must fit into JSON.
        ema_weights: Averaged weights, or None.
        total_limit: Number of checkpoints to keep; the oldest are deleted. Those of later steps are always deleted: a
            run that went back to an earlier checkpoint replaces them, and `"latest"` must not find them.

    Returns:
        Path of the checkpoint.

    Raises:
        CheckpointError: It could not be written, because the disk is full for example.
    """
    output_dir = Path(output_dir)
    final = output_dir / f"checkpoint-{step}"

    def write(folder: Path) -> None:
        accelerator.save_state(str(folder))
        if accelerator.is_main_process and ema_weights is not None:
            save_file({name: tensor.contiguous() for name, tensor in ema_weights.items()}, folder / _EMA_WEIGHTS)

    try:
        replace_folder(accelerator, final, write, lambda folder: _seal(folder, {"step": step, **state}))
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} The last complete checkpoint is {last_checkpoint(output_dir)}; make room and resume with"
            " --resume_from_checkpoint latest"
        ) from error
    if accelerator.is_main_process:
        _sync(output_dir)
        found = _checkpoints(output_dir)
        newest = found.index(final)
        kept = found[newest:] if total_limit is None else found[newest : newest + total_limit]
        for path in set(found) - set(kept):
            shutil.rmtree(path, ignore_errors=True)
    accelerator.wait_for_everyone()
    return final


def _seal(folder: Path, state: Mapping[str, Any]) -> None:
    """Flush every file to disk and write the manifest.

    SHA-256 is the fastest hash of the standard library where CPUs have instructions for it, and takes a small part of
    the time that the files take to be written.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    names = {path: str(path.relative_to(folder)) for path in files}
    manifest = {
        "files": {name: path.stat().st_size for path, name in names.items()},
        "sha256": {name: file_hash(path) for path, name in names.items()},
        "state": dict(state),
    }
    # Its own, over all else.
    manifest["seal"] = _seal_of(manifest)
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    _sync(folder / _MANIFEST)
    _sync(folder)


def _seal_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=4096)
def _known_hash(path: Path, size: int, changed_ns: int) -> str:
    """Return the hash of a file, which is looked for several times before a run goes on."""
    return file_hash(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checkpoints(output_dir: Path) -> list[Path]:
    """Return the folders named like a checkpoint, newest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def checkpoint_problem(path: str | Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if it is complete.

    The main process reads all files; others look at their sizes, so that a shared disk is read once.
    """
    path = Path(path)
    if not path.is_dir():
        where = f" on {socket.gethostname()}; all machines of a run must share it" if process_rank() else ""
        return f"there is no such folder{where}"
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        sizes, seal = manifest["files"].items(), manifest.pop("seal", None)
        # Earlier versions wrote neither.
        hashes = manifest["sha256"] if seal is not None and process_rank() == 0 else {}
        manifest["state"]["step"]
        if (seal is not None or "sha256" in manifest) and seal != _seal_of(manifest):
            return f"its {_MANIFEST} is damaged"
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
        if hashes and _known_hash(file.resolve(), size, file.stat().st_mtime_ns) != hashes[name]:
            return f"the file {name} is damaged: its SHA-256 is not that of when it was written"
    return None


def find_checkpoint(output_dir: str | Path, which: str = "latest") -> Path | None:
    """Return the path of the checkpoint to resume from, or None if there is none yet for `"latest"`.

    Args:
        output_dir: Folder of the run.
        which: `"latest"` for the newest complete checkpoint, or the path of one.

    Raises:
        ValueError: The named checkpoint is not whole, or there are some and none is whole.
    """
    if which != "latest":
        problem = checkpoint_problem(which)
        if problem:
            raise ValueError(f"cannot resume from {which}: {problem}. Pass 'latest' for the newest complete one")
        return Path(which)
    path, problems = _newest_whole(Path(output_dir))
    for name, problem in problems.items():
        if path is not None and process_rank() == 0:
            logger.warning_once(f"skipping {name}: {problem}")
    if path is None and problems:
        raise ValueError(
            f"no checkpoint in {output_dir} is whole: {'; '.join(f'{name}: {why}' for name, why in problems.items())}."
            " Put back a copy of one, or begin anew (--overwrite_output_dir instead of --resume_from_checkpoint)"
        )
    return path


def agree_on_checkpoint(accelerator: Any, output_dir: str | Path, which: str = "latest") -> Path | None:
    """Return the checkpoint that the main process finds with [`find_checkpoint`]; called by all processes.

    Raises:
        ValueError: As `find_checkpoint` raises it, in all processes; or a machine does not have the checkpoint.
    """
    utils = require("accelerate.utils")
    path, problem = None, None
    if accelerator.is_main_process:
        try:
            path = find_checkpoint(output_dir, which)
        except ValueError as error:
            problem = str(error)
    path, problem = utils.broadcast_object_list([path, problem])
    if problem is None:
        # Shards lie in files of all machines.
        missing = [not_shared(path)] if path is not None and not path.is_dir() else []
        problem = next(iter(utils.gather_object(missing)), None)
    if problem is not None:
        raise ValueError(problem)
    return path


def last_checkpoint(output_dir: str | Path) -> str:
    """Return the path of the newest whole checkpoint, or "none", for messages."""
    return str(_newest_whole(Path(output_dir))[0] or "none")


def _newest_whole(output_dir: Path) -> tuple[Path | None, dict[Path, str]]:
    """Return the newest whole checkpoint, and by path what is wrong with those after it."""
    problems: dict[Path, str] = {}
    for path in _checkpoints(output_dir):
        problem = checkpoint_problem(path)
        if problem is None:
            return path, problems
        problems[path] = problem
    return None, problems


def load_checkpoint(accelerator: Any, path: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor] | None]:
    """Load a complete checkpoint into the prepared model and optimizer; called by all processes.

    Returns:
        The state that was saved with it (with `step`), and the averaged weights or None.

    Raises:
        ValueError: It is of another model, or of an optimizer with other groups of parameters.
    """
    path = Path(path)
    try:
        accelerator.load_state(str(path))
    except (RuntimeError, ValueError) as error:
        # As torch calls what does not fit; earlier versions did not save from which config it came.
        if not re.search(r"state[_ ]dict", str(error)):
            raise
        raise ValueError(
            f"{path} does not fit the model and optimizer of this run: it was saved by a run with other arguments, of"
            " the config or of what is trained. Pass those that it began with, or begin another one in a new"
            " --output_dir"
        ) from error
    ema = path / _EMA_WEIGHTS
    return read_state(path), load_file(ema) if ema.is_file() else None


def read_state(path: str | Path) -> dict[str, Any]:
    """Return the state (with `step`) that was saved with a complete checkpoint."""
    return json.loads((Path(path) / _MANIFEST).read_text())["state"]


def replace_folder(
    accelerator: Any,
    folder: Path,
    write: Callable[[Path], object],
    seal: Callable[[Path], object] | None = None,
) -> None:
    """Fill a new folder, then replace `folder` by it; called by all processes.

    Args:
        accelerator: Accelerator of the processes.
        folder: Folder, which all processes share.
        write: Writes into a folder; called by all processes.
        seal: Writes what comes last; called by the main process when all others have written.

    Raises:
        CheckpointError: A process could not write. What `folder` was is unchanged.
    """
    partial, old = (folder.with_name(f"{folder.name}.{end}") for end in ("partial", "old"))
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    error: Exception | None = None
    try:
        # On a machine that does not share the folder of the run, a process has nowhere to write yet.
        check_there(folder.parent, may_make=not accelerator.is_main_process)
        partial.mkdir(parents=True, exist_ok=True)
        write(partial)
    except _WRITE_ERRORS as caught:
        error = caught
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and error is None and seal is not None:
        try:
            seal(partial)
        except _WRITE_ERRORS as caught:
            error = caught
    # All processes must agree: one without an error would wait forever for one that has stopped.
    failed = torch.tensor(float(error is not None), device=accelerator.device)
    if accelerator.reduce(failed, "sum").item() > 0:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"could not write {folder}: {error or 'another process failed'}. Is the disk full?"
        ) from error
    if accelerator.is_main_process:
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


# What a run leaves in its folder, by patterns, and what goes with a card. Other things there are the user's.
_OF_A_RUN = ("best/best.json", "best/*.safetensors", "best/*config.json", "pictures/denoised.png",
             "pictures/step-*.png", "log.jsonl", "all_results.json", "model*.safetensors*", "config.json",
             "preprocessor_config.json")  # fmt: skip
_OF_A_CARD = ("card.json", "README.md", ".eval_results")
_CHECKPOINT = r"checkpoint-\d+(\.partial|\.old)?"


def check_output_dir(
    output_dir: str | Path, resume: str | None, overwrite: bool = False, start: str | None = None
) -> None:
    """Refuse to begin a run where an earlier one has left its model or its checkpoints.

    Args:
        output_dir: Folder of the run.
        resume: Checkpoint that the run resumes from, `"latest"`, or None.
        overwrite: Whether the user wants what is there to be removed.
        start: Name or path of the checkpoint that the run starts from.

    Raises:
        ValueError: There is something that would be lost.
    """
    output_dir = Path(output_dir)
    if start is not None and output_dir.is_dir() and Path(start).is_dir() and output_dir.samefile(start):
        raise ValueError(f"{output_dir} is the checkpoint to start from, too; pass another --output_dir")
    if overwrite and start is not None and Path(start).resolve().is_relative_to(output_dir.resolve()):
        raise ValueError(f"overwrite_output_dir removes {start}, the start of this run; pass another output_dir")
    if overwrite and resume is not None:
        raise ValueError("overwrite_output_dir removes the checkpoints that resume_from_checkpoint needs; pass one")
    if overwrite:
        return
    checkpoints = _checkpoints(output_dir)
    if checkpoints and resume is None:
        raise ValueError(
            f"{output_dir} holds the checkpoints of an earlier run ({checkpoints[0].name}); pass"
            " --resume_from_checkpoint latest to continue it, another --output_dir, or --overwrite_output_dir to"
            " replace it"
        )
    if resume is not None and find_checkpoint(output_dir, resume) is not None:
        return
    finished = [name for name in ("all_results.json", "config.json") if (output_dir / name).is_file()]
    if finished:
        raise ValueError(
            f"{output_dir} holds the model of an earlier run ({finished[0]}); pass another --output_dir, or"
            " --overwrite_output_dir to replace it"
        )


def remove_run(output_dir: str | Path) -> None:
    """Remove what an earlier run has left in its folder, and results of the model that its card names."""
    output_dir, card = Path(output_dir), Path(output_dir) / "card.json"
    named = json.loads(card.read_text(encoding="utf-8")).get("results", []) if card.is_file() else []
    # The card may be somebody else's: it names files of this folder, and nothing else is removed for it.
    results = [output_dir / name for name in named if Path(name).name == name and (output_dir / name).is_file()]
    checkpoints = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(_CHECKPOINT, path.name)]
    patterns = (*_OF_A_RUN, *(_OF_A_CARD if card.is_file() else ()))
    for path in [*checkpoints, *(path for pattern in patterns for path in output_dir.glob(pattern)), *results]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
