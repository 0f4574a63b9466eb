# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Keep an output folder to one run at a time, and say in a sentence what is wrong with it.

The lock is the kernel's, on a file in the folder. It ends with its holder, however that dies, so it is never stale. A
file beside it names the holder. Where a file system has no such locks, `filelock` compares host, boot, number and
start time of the holder instead.
"""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from .processes import process_rank, program_name


# Hidden; what is published leaves both out.
LOCK = ".transformers_nim_lock"
HOLDER = f"{LOCK}.json"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# By their paths, the folders that this process holds, as descriptors: they tell a folder from a later one there. None
# stands for one that it has not seen yet.
_held: dict[str, int | None] = {}


class OutputFolderError(RuntimeError):
    """An output folder that another run uses, that has vanished, or whose disk is full."""


def check_path(folder: str | Path) -> None:
    """Check what can be told of an output folder before anything is done: whether it can be made and written.

    Raises:
        ValueError: It or what it would lie in is a file, or is not writable.
    """
    folder = Path(folder)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"output_dir {folder}: {there} is a file; pass a folder")
    if not os.access(there, os.W_OK):
        raise ValueError(f"output_dir {folder}: {there} cannot be written; pass another folder")


@contextmanager
def hold_folder(folder: str | os.PathLike, to_resume: str, is_main: bool | None = None) -> Iterator[None]:
    """Make an output folder and keep other runs out of it, in all processes of a run; the main one locks.

    A folder that is made here and stays empty is removed again.

    Args:
        folder: The folder.
        to_resume: How the run is resumed, for messages.
        is_main: Whether this is the main process; by default, as the launcher says.

    Raises:
        ValueError: It is a file, or cannot be written.
        OutputFolderError: Another run uses it; or, while it is held, it vanishes or its disk fills up.
    """
    folder, key = Path(folder), os.path.abspath(folder)
    is_main = process_rank() == 0 if is_main is None else is_main
    made = [path for path in (folder, *folder.absolute().parents) if not path.exists()] if is_main else []
    lock = _lock(folder) if is_main else None
    # Other processes cannot open it before the main one has made it.
    _held[key] = _open(folder) if is_main else None
    try:
        yield
    except Exception as error:
        text = _problem(folder, error, to_resume)
        if text is None:
            raise
        raise OutputFolderError(text) from error
    finally:
        if lock is not None:
            # In another folder at the same place, they are those of another run.
            if _is_there(key):
                (folder / HOLDER).unlink(missing_ok=True)
                (folder / LOCK).unlink(missing_ok=True)
            lock.release()
            with suppress(OSError):
                for path in made:
                    path.rmdir()
        descriptor = _held.pop(key)
        if descriptor is not None and descriptor >= 0:
            os.close(descriptor)


def check_there(folder: str | Path, may_make: bool = False) -> None:
    """Check, before something is written, that a held folder is still the one that it was.

    A folder that was removed, and made again by another run, is not. Folders that are not held are not checked.

    Args:
        folder: The folder.
        may_make: Whether a process may make it that has never seen it, as on a machine that does not share it.

    Raises:
        OutputFolderError: It is gone, or this machine does not share it.
    """
    key = os.path.abspath(folder)
    if key not in _held or _is_there(key):
        return
    if _held[key] is not None:
        raise OutputFolderError(_vanished(folder))
    if not may_make:
        raise OutputFolderError(not_shared(folder))


def _lock(folder: Path) -> FileLock:
    check_path(folder)
    lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise OutputFolderError(_in_use(folder)) from None
    except OSError as error:
        raise ValueError(
            f"output_dir {folder} cannot be written ({error.strerror or error}); pass another folder"
        ) from error
    holder = {
        "program": program_name(),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
    }
    try:
        (folder / HOLDER).write_text(json.dumps(holder) + "\n", encoding="utf-8")
    except OSError as error:
        lock.release()
        raise OutputFolderError(f"cannot write into {folder}: {error.strerror}; make room") from error
    return lock


def _in_use(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        who = f"{holder['program']}, process {holder['pid']} on {holder['host']}, since {holder['since']}"
        if holder["host"] != socket.gethostname():
            # A file server may take long to notice that a machine is down.
            who += f" (if that machine is down, remove {folder / LOCK})"
    except (OSError, ValueError, LookupError, TypeError):
        who = "which has just begun"
    return f"{folder} is in use by another run: {who}. Wait until it has ended, or pass another output_dir"


def _open(folder: str | Path) -> int:
    try:
        return os.open(folder, os.O_RDONLY)
    except OSError:
        # Windows opens no folders, and does not remove one in which a file is open.
        return -1


def _is_there(key: str) -> bool:
    descriptor = _held[key]
    if descriptor is None:
        if not os.path.isdir(key):
            return False
        descriptor = _held[key] = _open(key)
    try:
        return os.path.isdir(key) if descriptor < 0 else os.path.samestat(os.fstat(descriptor), os.stat(key))
    except OSError:
        return False


def not_shared(folder: str | Path) -> str:
    """Return in a sentence that a folder is missing on this machine."""
    return (
        f"{folder} is not on {socket.gethostname()}: pass an output_dir on a disk that all machines of the run share"
    )


def _vanished(folder: str | Path) -> str:
    return (
        f"{folder} has vanished during the run: it was removed, moved or unmounted. Put it back and resume, or begin"
        " again"
    )


def _problem(folder: Path, error: Exception, to_resume: str) -> str | None:
    """Return in a sentence what an error says of the folder; None if it is about something else."""
    if isinstance(error, OutputFolderError):
        return None
    key = os.path.abspath(folder)
    if _held[key] is not None and not _is_there(key):
        return _vanished(folder)
    if isinstance(error, OSError) and error.errno in _FULL:
        where = error.filename or folder
        return f"{where}: {error.strerror}. What is in {folder} is whole; make room, and go on with {to_resume}"
    return None
