# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Keep the records of a long measurement on disk, one JSON line each, so that a killed run can be resumed.

Each process appends to its own file, `records-N.jsonl`. A record counts once its line is complete and on disk. When a
run starts or resumes, the main process gathers all records in `records.jsonl`, so the number of processes may change.
`settings.json` holds what was measured: a run does not resume with other settings.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .output_folder import check_there


SETTINGS = "settings.json"
_GATHERED = "records.jsonl"
# What it means that the hash of a model differs.
OTHER_MODEL = "the weights or the config of the model are others"
# How long it took says nothing of what was measured.
_TIMES = ("seconds",)


def start_records(
    folder: str | Path,
    settings: Mapping[str, Any],
    keys: Sequence[str],
    resume: bool,
    defaults: Mapping[str, Any] | None = None,
    names: Sequence[str] = (),
    meanings: Mapping[str, str] | None = None,
) -> None:
    """Prepare a folder for records; called by the main process, before any process appends.

    Args:
        folder: Folder of the records.
        settings: What decides the records' values; must fit into JSON.
        keys: Fields that identify a record.
        resume: Whether to continue existing records. Without any, a new run starts.
        defaults: Values of settings that did not exist when older records were made.
        names: Settings that name what other settings know by its content, and so may change.
        meanings: What to say, by its name, if a setting has changed that is a hash.

    Raises:
        ValueError: There are records, and `resume` is False or they were made with other settings.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(settings))
    path = folder / SETTINGS
    if path.exists():
        if not resume:
            raise ValueError(
                f"{folder} holds the records of an earlier run; pass --resume to go on with it, or another folder"
            )
        old = {**(defaults or {}), **json.loads(path.read_text())}
        changed = [n for n in {**old, **settings} if n not in names and old.get(n) != settings.get(n)]
        if changed:
            meanings = meanings or {}
            shown = ", ".join(
                meanings.get(name) or describe_change(name, old.get(name), settings.get(name)) for name in changed
            )
            raise ValueError(f"cannot go on with the run in {folder}: {shown}. Change it back, or pass another folder")
    else:
        replace_file(path, json.dumps(settings, indent=2) + "\n")
    records = read_records(folder, keys)
    replace_file(folder / _GATHERED, "".join(json.dumps(record) + "\n" for record in records))
    # A process killed here leaves records twice; they are read once.
    for part in folder.glob("records-*.jsonl"):
        part.unlink()


def describe_change(name: str, old: Any, new: Any) -> str:
    """Return in words what a setting was and is, of mappings the fields that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return ", ".join(
            describe_change(f"{name}.{key}", old.get(key), new.get(key))
            for key in old | new
            if old.get(key) != new.get(key)
        )
    was, now = repr(old), repr(new)
    return f"{name} differs" if len(was) + len(now) > 200 else f"{name} was {was} and is {now}"


def append_record(folder: str | Path, process_index: int, record: Mapping[str, Any]) -> None:
    """Append a record; it is on disk when this returns.

    Raises:
        OutputFolderError: The folder, which this process holds, is gone.
    """
    check_there(folder)
    with open(Path(folder) / f"records-{process_index}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_records(folder: str | Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return all complete records, each once, in the order of their keys.

    Records that differ in nothing but the time that they took are equal; the first one counts.

    Raises:
        ValueError: A file is damaged, or two records with equal keys differ.
    """
    found: dict[tuple, dict[str, Any]] = {}
    for path in sorted(Path(folder).glob("records*.jsonl")):
        # The last line of a killed process may lack its end.
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                key = tuple(record[name] for name in keys)
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f"line {number} of {path} is damaged: {line[:80]!r}; remove the line") from error
            if _timeless(found.setdefault(key, record)) != _timeless(record):
                raise ValueError(
                    f"{path.parent} holds two different records of {dict(zip(keys, key))}, so two runs have written"
                    f" there; remove the wrong one, or both (the second is line {number} of {path.name})"
                )
    return [found[key] for key in sorted(found)]


def _timeless(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in _TIMES}


def replace_file(path: str | Path, text: str) -> None:
    """Write a file so that it is there as a whole or not at all, whatever kills the process."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        # The disk is full, say: what cannot be finished only takes room.
        partial.unlink(missing_ok=True)
        raise
