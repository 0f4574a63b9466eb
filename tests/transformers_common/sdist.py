# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Finds transformers' own tests, which its source distribution has and its wheel has not.

`TRANSFORMERS_SDIST` names an unpacked source distribution. Without it, the one of exactly the installed version is
downloaded with pip, once, into `$XDG_CACHE_HOME/transformers-nim` (`~/.cache/transformers-nim` by default). The tests
are code that will be run, so the cache is in the user's own folder and not in a shared one with a name to be guessed.
"""

import functools
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers


# Without build isolation pip needs a few seconds, but also setuptools and its wheel command in this environment.
_WAYS = (["--no-build-isolation"], [])
_LANDMARK = "test_modeling_common.py"


class SdistUnavailable(Exception):
    """The source distribution cannot be had; the message says why."""


def find_tests() -> Path:
    """The folder `tests` of the source distribution of the installed transformers.

    Raises:
        SdistUnavailable: It could not be downloaded.
        ValueError: `TRANSFORMERS_SDIST` is not an unpacked source distribution of the installed version.
    """
    given = os.environ.get("TRANSFORMERS_SDIST")
    if given:
        return _check(Path(given))
    found = _downloaded()
    if isinstance(found, str):
        raise SdistUnavailable(found)
    return found


def _check(folder: Path) -> Path:
    tests = folder / "tests"
    if not (tests / _LANDMARK).is_file():
        raise ValueError(f"TRANSFORMERS_SDIST={folder} is not an unpacked source distribution: it has no {_LANDMARK}")
    info = folder / "PKG-INFO"
    version = re.search(r"^Version: (\S+)", info.read_text(encoding="utf-8"), re.MULTILINE) if info.is_file() else None
    if version is None or version[1] != transformers.__version__:
        theirs = version[1] if version else "unknown (no PKG-INFO)"
        ours = transformers.__version__
        raise ValueError(f"TRANSFORMERS_SDIST={folder} is of version {theirs}, the installed transformers of {ours}")
    return tests


@functools.cache
def _downloaded() -> Path | str:
    """The folder of the tests, or why there is none; cached, so that a failure costs its time once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "transformers-nim"
    name = f"transformers-{transformers.__version__}"
    tests = cache / name / "tests"
    if (tests / _LANDMARK).is_file():
        return tests
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            archive = _download(Path(scratch))
            _unpack_tests(archive, Path(scratch), name)
            try:
                # In one step, so that a run that was interrupted leaves no half of it behind.
                (Path(scratch) / name).rename(cache / name)
            except OSError:
                # Another run was faster.
                if not (tests / _LANDMARK).is_file():
                    raise
    except (OSError, tarfile.TarError, SdistUnavailable) as error:
        return f"the source distribution of {name} cannot be had, and TRANSFORMERS_SDIST is not set: {error}"
    return tests


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", f"transformers=={transformers.__version__}"]
    # Not `--no-binary :all:`, which would build setuptools from source too.
    command += ["--no-deps", "--no-binary", "transformers", "--dest", str(folder)]
    command += ["--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "15"]
    message = ""
    for way in _WAYS:
        try:
            done = subprocess.run([*command, *way], capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            raise SdistUnavailable("pip took more than five minutes") from None
        archives = list(folder.glob("transformers-*.tar.gz"))
        if done.returncode == 0 and archives:
            return archives[0]
        message = done.stderr.strip().rsplit("\n", 1)[-1]
    raise SdistUnavailable(f"pip download failed: {message}")


def _unpack_tests(archive: Path, folder: Path, name: str) -> None:
    """Unpacks `<name>/tests` and nothing else; the filter refuses paths and links that lead out of the folder."""
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.name.startswith(f"{name}/tests/")]
        tar.extractall(folder, members=members, filter="data")
    if not (folder / name / "tests" / _LANDMARK).is_file():
        raise SdistUnavailable(f"{archive.name} holds no tests/{_LANDMARK}")
