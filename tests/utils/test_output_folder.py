# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""One run at a time in a folder, whoever dies; and folders that are files, vanish or fill up."""

import errno
import json
import os
import shutil
import signal
import sys
import time
from contextlib import suppress

import pytest
import torch

from transformers_nim.hub.publication import prepare
from transformers_nim.utils import output_folder
from transformers_nim.utils.output_folder import HOLDER, LOCK, OutputFolderError, check_there, hold_folder
from transformers_nim.utils.records import append_record, read_records


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """The number of a process that holds a folder, with a worker that outlives it if it is killed."""
    monkeypatch.setattr(sys, "argv", ["certify.py"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        with hold_folder(tmp_path / "out", "--resume"):
            if os.fork():
                os.write(done, b"x")
            time.sleep(60)
        os._exit(0)
    assert os.read(ready, 1) == b"x"
    yield child
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(child, 0)


def hold(folder):
    with hold_folder(folder, "--resume"):
        pass


def test_the_second_run_is_told_of_the_first_and_the_lock_dies_with_it(holder, tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(OutputFolderError) as error:
        hold(folder)
    assert str(error.value).startswith(
        f"{folder} is in use by another run: certify.py, process {holder} on {os.uname().nodename}, since 2"
    )
    assert str(error.value).endswith(". Wait until it has ended, or pass another output_dir")
    # It takes nothing away from the holder.
    assert json.loads((folder / HOLDER).read_text())["pid"] == holder
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    # Its files are still there, and so is its worker.
    assert sorted(path.name for path in folder.iterdir()) == [LOCK, HOLDER]
    hold(folder)
    assert list(folder.iterdir()) == []


def test_other_processes_of_a_run_are_not_refused(holder, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    hold(tmp_path / "out")
    assert (tmp_path / "out" / HOLDER).exists()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(OutputFolderError, match="in use"):
        hold(tmp_path / "out")


def test_a_holder_elsewhere_or_one_that_does_not_say_who_it_is(tmp_path, monkeypatch):
    with hold_folder(tmp_path, "--resume"):
        monkeypatch.setattr(output_folder.socket, "gethostname", lambda: "elsewhere")
        with pytest.raises(OutputFolderError, match=rf"since [^(]* \(if that machine is down, remove .*{LOCK}"):
            hold(tmp_path)
        (tmp_path / HOLDER).write_text('{"prog')
        with pytest.raises(OutputFolderError, match="another run: which has just begun"):
            hold(tmp_path)


def test_what_is_made_and_stays_empty_goes_again(tmp_path):
    with pytest.raises(ZeroDivisionError), hold_folder(tmp_path / "a" / "b", "--resume"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with hold_folder(tmp_path / "a" / "b", "--resume"):
        (tmp_path / "a" / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_lock_that_was_left_is_not_published(tmp_path):
    torch.save({}, tmp_path / "x.pt")
    (tmp_path / "robustness").mkdir()
    for name in (LOCK, HOLDER, f"robustness/{LOCK}"):
        (tmp_path / name).touch()
    publication = prepare(tmp_path, "a/b")
    assert list(publication.files) == ["x.pt"]
    assert not any(LOCK in problem for problem in publication.problems)


def test_a_folder_that_vanishes(tmp_path):
    folder = tmp_path / "out"

    def run():
        with hold_folder(folder, "--resume"):
            append_record(folder, 0, {"row": 0})
            shutil.rmtree(folder)
            append_record(folder, 0, {"row": 1})

    with pytest.raises(OutputFolderError, match=rf"^{folder} has vanished during the run"):
        run()
    assert not folder.exists()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_folder_that_another_run_has_made_anew(tmp_path, monkeypatch, rank):
    """Removed while the first run still lives: its records do not get into those of the second."""
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setenv("RANK", rank)

    def run():
        with hold_folder(folder, "--resume"):
            append_record(folder, int(rank), {"row": 0})
            shutil.rmtree(folder)
            folder.mkdir()
            (folder / LOCK).touch()
            append_record(folder, int(rank), {"row": 1})

    with pytest.raises(OutputFolderError, match="has vanished"):
        run()
    assert read_records(folder, ["row"]) == []
    # The lock that is there now is not the first run's to remove.
    assert (folder / LOCK).exists()


def test_errors_of_other_places_stay_what_they_are(tmp_path):
    for is_main in (True, False):
        with pytest.raises(FileNotFoundError), hold_folder(tmp_path / "out", "--resume", is_main):
            (tmp_path / "other").read_text()
    # A process that is not the main one may fail before that has made the folder.
    with pytest.raises(ValueError, match="bad"), hold_folder(tmp_path / "out", "--resume", False):
        raise ValueError("bad")
    check_there(tmp_path / "out")


def test_a_machine_that_does_not_share_the_folder(tmp_path):
    """Told as what it is, and not as a folder that has vanished."""
    not_shared = pytest.raises(OutputFolderError, match=r"out is not on .*all machines of the run share")
    with not_shared, hold_folder(tmp_path / "out", "--resume", is_main=False):
        append_record(tmp_path / "out", 1, {"row": 1})


def test_places_that_are_no_folders_or_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(ValueError, match=rf"output_dir {path}: {tmp_path}/file is a file; pass a folder"):
            hold(path)

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    for what in ("Path.mkdir", "FileLock.acquire"):
        with monkeypatch.context() as changed:
            changed.setattr(f"transformers_nim.utils.output_folder.{what}", refuse)
            with pytest.raises(ValueError, match=r"out cannot be written \(Read-only file system\); pass another"):
                hold(tmp_path / "out")


def test_a_lock_is_taken_at_once(tmp_path):
    with hold_folder(tmp_path, "--resume"):
        started = time.monotonic()
        with pytest.raises(OutputFolderError):
            hold(tmp_path)
    assert time.monotonic() - started < 1
