# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import json
import resource
import signal

import pytest

from transformers_nim.utils.output_folder import OutputFolderError, hold_folder
from transformers_nim.utils.records import append_record, read_records, replace_file, start_records


KEYS = ("row", "sigma")
SETTINGS = {"sigmas": (10.0, 20.0), "n": 100}


def record(row, sigma=10.0, value=0.1):
    return {"row": row, "sigma": sigma, "value": value}


def test_records_of_several_processes(tmp_path):
    start_records(tmp_path / "new", SETTINGS, KEYS, resume=False)
    for process, row in ((1, 3), (0, 20), (1, 0)):
        append_record(tmp_path / "new", process, record(row))
    append_record(tmp_path / "new", 0, record(3, 5.0))
    assert read_records(tmp_path / "new", KEYS) == [record(0), record(3, 5.0), record(3), record(20)]


def test_a_torn_line_does_not_count_and_is_not_built_upon(tmp_path):
    start_records(tmp_path, SETTINGS, KEYS, resume=False)
    append_record(tmp_path, 0, record(0))
    append_record(tmp_path, 0, record(1))
    part = tmp_path / "records-0.jsonl"
    for cut in range(1, len(json.dumps(record(1))) + 2):
        part.write_text(f"{json.dumps(record(0))}\n{json.dumps(record(1))}\n"[:-cut])
        assert read_records(tmp_path, KEYS) == [record(0)]
    start_records(tmp_path, SETTINGS, KEYS, resume=True)
    append_record(tmp_path, 0, record(2))
    assert read_records(tmp_path, KEYS) == [record(0), record(2)]


def test_a_kill_while_gathering_loses_and_doubles_nothing(tmp_path):
    """The gathered file is there, and the parts are not yet gone."""
    start_records(tmp_path, SETTINGS, KEYS, resume=False)
    append_record(tmp_path, 0, record(0))
    append_record(tmp_path, 1, record(1))
    parts = {path: path.read_text() for path in tmp_path.glob("records-*.jsonl")}
    assert len(parts) == 2
    start_records(tmp_path, SETTINGS, KEYS, resume=True)
    assert not list(tmp_path.glob("records-*.jsonl"))
    for path, text in parts.items():
        path.write_text(text)
    (tmp_path / "records.jsonl.partial").write_text('{"row": 7')
    for _ in range(2):
        assert read_records(tmp_path, KEYS) == [record(0), record(1)]
        start_records(tmp_path, SETTINGS, KEYS, resume=True)


def test_older_records_have_the_defaults_of_newer_settings(tmp_path):
    start_records(tmp_path, SETTINGS, KEYS, resume=False)
    start_records(tmp_path, {**SETTINGS, "more": 1}, KEYS, resume=True, defaults={"more": 1})
    with pytest.raises(ValueError, match="more was 1 and is 2"):
        start_records(tmp_path, {**SETTINGS, "more": 2}, KEYS, resume=True, defaults={"more": 1})
    # What is written counts, and not the default.
    with pytest.raises(ValueError, match="n was 100 and is 7"):
        start_records(tmp_path, {**SETTINGS, "n": 7}, KEYS, resume=True, defaults={"n": 7})


def test_equal_records_may_have_taken_another_time(tmp_path):
    """As two runs leave them that did not notice each other."""
    start_records(tmp_path, SETTINGS, KEYS, resume=False)
    for process, seconds in ((0, 1.5), (1, 2.5)):
        append_record(tmp_path, process, {**record(0), "seconds": seconds})
    for _ in range(2):
        assert read_records(tmp_path, KEYS) == [{**record(0), "seconds": 1.5}]
        start_records(tmp_path, SETTINGS, KEYS, resume=True)


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: append_record(folder, 0, record(1)),
        lambda folder: replace_file(folder / "results.json", "x" * 1000),
    ],
)
def test_a_full_disk_leaves_whole_records(tmp_path, write):
    """Files that may not grow beyond a limit fail like those on a disk that is full."""
    start_records(tmp_path, SETTINGS, KEYS, resume=False)
    append_record(tmp_path, 0, record(0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def run():
        with hold_folder(tmp_path, "--resume"):
            size = (tmp_path / "records-0.jsonl").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9, limits[1]))
            write(tmp_path)

    try:
        with pytest.raises(OutputFolderError, match=rf"{tmp_path}: File too large. .* is whole; .* with --resume"):
            run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.glob("*.partial"))
    start_records(tmp_path, SETTINGS, KEYS, resume=True)
    append_record(tmp_path, 0, record(1))
    assert read_records(tmp_path, KEYS) == [record(0), record(1)]


def test_errors(tmp_path):
    start_records(tmp_path, SETTINGS, KEYS, resume=True)
    with pytest.raises(ValueError, match="pass --resume"):
        start_records(tmp_path, SETTINGS, KEYS, resume=False)
    for changed, message in (({"n": 7}, "n was 100 and is 7"), ({"more": 1}, "more was None and is 1")):
        with pytest.raises(ValueError, match=message):
            start_records(tmp_path, {**SETTINGS, **changed}, KEYS, resume=True)
    append_record(tmp_path, 0, record(0))
    append_record(tmp_path, 1, record(0, value=0.2))
    with pytest.raises(ValueError, match=r"two different records of \{'row': 0, 'sigma': 10.0\}"):
        read_records(tmp_path, KEYS)
    for text in ("{broken}\n", '{"row": 1}\n', "[1]\n"):
        (tmp_path / "records-1.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"line 1 of .*records-1\.jsonl is damaged"):
            read_records(tmp_path, KEYS)
