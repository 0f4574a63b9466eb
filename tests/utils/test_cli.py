# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What a command prints where something is wrong, and with which status it exits."""

import errno
import signal
import sys
import types
from pathlib import Path

import pytest
import torch
from conftest import save_with_processor, tiny_model
from transformers import AutoConfig

from transformers_nim import NIMForRobustImageClassification, parse_sigma
from transformers_nim.training.run import TrainingDivergedError
from transformers_nim.utils import cli
from transformers_nim.utils.cli import check_arguments, exit_with_error, is_users_error, make_parser, run_command
from transformers_nim.utils.extras import check_installed
from transformers_nim.utils.interruption import deferred_signals
from transformers_nim.utils.processes import PROGRAM


def raising(error: BaseException):
    def main():
        raise error

    return main


def caught(main) -> Exception:
    try:
        main()
    except Exception as error:
        return error
    pytest.fail("nothing was raised")


def stopped(main, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit_info:
        run_command(main)
    return exit_info.value.code, capsys.readouterr().err


@pytest.fixture(autouse=True)
def program(monkeypatch):
    monkeypatch.delenv(PROGRAM, raising=False)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv(cli.DEBUG, raising=False)
    monkeypatch.setattr(sys, "argv", ["transformers-nim test"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)


def test_what_our_checks_say_is_one_line(capsys):
    status, text = stopped(lambda: parse_sigma(-1), capsys)
    assert status == 2
    assert text == "transformers-nim test: error: sigma must be a finite number of at least 0, got -1\n"


def test_a_missing_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "scipy", None)
    status, text = stopped(lambda: check_installed("timm", "torch", "scipy"), capsys)
    assert status == 1
    assert "the packages 'timm', 'scipy': pip install 'transformers-nim[certify,train]'\n" in text


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "x.json"), 2, "x.json: No such file"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/out"), 1, "/out: Permission denied"),
        (TrainingDivergedError("the loss of step 3\n  is nan"), 1, "the loss of step 3 is nan"),
        (ConnectionError("the Hub is down"), 1, "the Hub is down"),
    ],
)
def test_what_the_machine_says_is_one_line(capsys, error, status, message):
    found, text = stopped(raising(error), capsys)
    assert found == status
    # Who wants to know where it was not raised by a check of this package, is told how.
    assert text == f"transformers-nim test: error: {message} ({cli.DEBUG}=1 shows where)\n"


def test_what_is_said_of_a_named_model_names_it(capsys, tmp_path):
    save_with_processor(tiny_model(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    status, text = stopped(lambda: NIMForRobustImageClassification.from_pretrained(tmp_path), capsys)
    assert status == 2
    assert f"{tmp_path}/model.safetensors are damaged or cannot be read safely: Error while deserializing" in text
    (tmp_path / "config.json").write_text("{}")
    status, text = stopped(lambda: AutoConfig.from_pretrained(str(tmp_path)), capsys)
    assert status == 2
    assert "model_type" in text


@pytest.mark.parametrize(
    "bug",
    [
        # Raised by torch or Python in a line of others.
        lambda: torch.ones(2) @ torch.ones(3),
        lambda: int("x"),
        lambda: {}["x"],
        raising(ValueError("raised elsewhere")),
        raising(AssertionError("")),
    ],
)
def test_bugs_keep_their_traceback(bug):
    error = caught(bug)
    assert not is_users_error(error)
    with pytest.raises(type(error)):
        run_command(bug)


def test_only_what_a_raise_of_ours_says_is_the_user_s():
    """Also of the module that `python -m` runs."""
    ours = types.ModuleType("__main__")
    path = str(Path(cli.__file__).parents[1] / "commands" / "example.py")
    source = "def check(x):\n  raise ValueError(\n    x)\ndef slip(x):\n  return int(x)\ndef claim(x):\n  assert x\n"
    cli.linecache.cache[path] = (len(source), None, source.splitlines(True), path)
    exec(compile(source, path, "exec"), ours.__dict__)
    assert is_users_error(caught(lambda: ours.check("x")))
    assert not is_users_error(caught(lambda: ours.slip("x")))
    assert not is_users_error(caught(lambda: ours.claim(False)))


def test_debugging_shows_every_traceback(monkeypatch):
    monkeypatch.setenv(cli.DEBUG, "1")
    with pytest.raises(ValueError, match="sigma must be"):
        run_command(lambda: parse_sigma(-1))


def test_status_of_a_command(capsys):
    assert stopped(lambda: 1, capsys) == (1, "")
    assert stopped(lambda: {"figure": 3}, capsys) == (0, "")
    assert stopped(raising(KeyboardInterrupt()), capsys) == (130, "transformers-nim test: interrupted by SIGINT\n")


def test_one_process_speaks(capsys, monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    for rank, expected in (("0", "x: error: no\n"), ("1", "x: error: process 1: no\n")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit):
            exit_with_error("x", "no", 2)
        assert capsys.readouterr().err == expected
    assert waited == [cli.PATIENCE]


def test_a_misspelt_option_is_named_with_the_nearest(capsys):
    parser = make_parser("x")
    parser.add_argument("--sigma", type=float, help="x")
    for argv, message in (
        (["--sgima=50"], "unrecognized arguments: --sgima=50 (did you mean --sigma?)"),
        (["--quux", "1"], "unrecognized arguments: --quux 1 (--help lists what there is)"),
        (["--sigma", "high"], "argument --sigma: invalid float value: 'high'"),
    ):
        with pytest.raises(SystemExit) as exit_info:
            parser.parse_args(argv)
        assert exit_info.value.code == 2
        assert capsys.readouterr().err == f"transformers-nim test: error: {message}\n"


def test_counts_and_required_arguments(capsys):
    parser = make_parser("x")
    for name in ("--folder", "--n"):
        parser.add_argument(name, type=int if name == "--n" else str, help="x")
    for argv, message in (
        ([], "--folder is missing"),
        (["--folder", "x", "--n", "0"], "--n must be at least 1, got 0"),
    ):
        with pytest.raises(SystemExit):
            check_arguments(parser, parser.parse_args(argv), ["folder"], ["n"])
        assert message in capsys.readouterr().err


def test_program_names(monkeypatch):
    main = sys.modules["__main__"]

    def name(argv: str, module: str | None) -> str:
        spec = None if module is None else types.SimpleNamespace(name=module)
        monkeypatch.setattr(main, "__spec__", spec)
        monkeypatch.setattr(sys, "argv", [argv])
        return cli.program_name()

    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert name("transformers-nim finetune", None) == "transformers-nim finetune"
    assert (
        name("python -m transformers_nim finetune", "transformers_nim.__main__")
        == "python -m transformers_nim finetune"
    )
    assert name("examples/finetune.py", None) == "finetune.py"
    assert (
        name("x/finetune.py", "transformers_nim.commands.finetune") == "python -m transformers_nim.commands.finetune"
    )
    assert name("x/__main__.py", "transformers_nim.conversion.__main__") == "python -m transformers_nim.conversion"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert name("x/plan.py", "transformers_nim.commands.plan") == "accelerate launch -m transformers_nim.commands.plan"
    monkeypatch.setenv(PROGRAM, "transformers-nim finetune")
    assert name("x/finetune.py", "transformers_nim.commands.finetune") == "transformers-nim finetune"


def test_launch(monkeypatch, capsys):
    """The processes get all arguments but --launch, and their status is the command's."""
    calls = []
    monkeypatch.setattr(cli, "launch", lambda *call: calls.append(call) or 3)
    parser = make_parser("x", module="transformers_nim.commands.pretrain")
    parser.add_argument("--output_dir", help="x")
    argv = ["--launch", "ddp", "num_processes=2", "--output_dir", "x"]
    with pytest.raises(SystemExit) as exit_info:
        parser.parse_args(argv)
    assert exit_info.value.code == 3
    choice = ["ddp", "num_processes=2"]
    assert calls == [("transformers_nim.commands.pretrain", "transformers-nim test", choice, ["--output_dir", "x"])]
    # Without it, results know nothing of it.
    assert vars(parser.parse_args(argv[3:])) == {"output_dir": "x"}


@pytest.mark.parametrize("num_processes", ["1", "2"])
def test_one_of_several_catches_signals_no_earlier_than_it_has_something_to_keep(
    num_processes, monkeypatch, own_signals
):
    """Before, what a launcher sends after an error of another one ends it at once, wherever it waits."""
    monkeypatch.setenv("WORLD_SIZE", num_processes)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    are_caught = []

    def main():
        are_caught.append(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
        with deferred_signals():
            are_caught.append(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
        # What is kept is being said.
        are_caught.append(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)

    with pytest.raises(SystemExit, match="0"):
        run_command(main)
    assert are_caught == [num_processes == "1", True, True]
