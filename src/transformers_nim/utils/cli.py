# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Command lines that show defaults, start processes by `--launch`, and report errors in one line."""

import argparse
import difflib
import functools
import linecache
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

from .extras import check_installed
from .interruption import Interrupted, catch_signals, end_with_parent, postpone_signals, release_signals
from .output_folder import check_path
from .processes import PROGRAM, launch, process_rank, program_name


DEBUG = "TRANSFORMERS_NIM_DEBUG"
# Seconds that other processes than the main one wait before they tell of an error, which mostly is the main one's too.
PATIENCE = 10.0
_PACKAGE = __name__.split(".")[0]
_FOLDER = str(Path(__file__).parents[1]) + os.sep
# Functions by which other libraries read what a user has named, and the argument that holds the name.
_READERS = {
    "from_pretrained": "pretrained_model_name_or_path",
    "cached_file": "path_or_repo_id",
    "load_dataset": "path",
    "load_from_disk": "dataset_path",
}
# Options whose values are shown to nobody.
_SECRET = ("--token", "--hub_token")
# Libraries whose own kinds of errors are about what they were asked to read or send.
_LIBRARIES = {"huggingface_hub", "datasets", "safetensors"}


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show defaults, except None: there the option's help says what leaving it out means."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # Not `in (None, False)`, where 0 would count too.
        if action.default is None or action.default is False:
            return action.help
        if isinstance(action.default, (list, tuple)):
            # As a user types it.
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line; see [`make_parser`]."""

    module: str | None = None
    packages: Sequence[str] = ()

    def parse_args(self, args=None, namespace=None):
        """Return the arguments, or exit: with an error, or with the status of the processes that `--launch` starts."""
        argv = list(sys.argv[1:] if args is None else args)
        parsed, unknown = self.parse_known_args(argv, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._advice(unknown[0])}")
        if getattr(parsed, "output_dir", None) is not None:
            try:
                check_path(parsed.output_dir)
            except ValueError as error:
                self.error(f"--{error}")
        check_installed(*self.packages)
        if getattr(parsed, "launch", None):
            assert self.module is not None
            try:
                status = launch(self.module, self.prog, parsed.launch, _without_launch(argv))
            except ValueError as error:
                self.error(str(error))
            self.exit(status)
        return parsed

    def error(self, message: str) -> NoReturn:
        """Exit with a line that says what is wrong."""
        exit_with_error(self.prog, message, 2)

    def _advice(self, unknown: str) -> str:
        name = unknown.split("=")[0]
        near = difflib.get_close_matches(name, self._option_string_actions, n=1)
        return f" (did you mean {near[0]}?)" if near else " (--help lists what there is)"


def make_parser(
    description: str | None,
    required: str = "--output_dir OUTPUT_DIR",
    packages: Sequence[str] = (),
    module: str | None = None,
) -> CommandParser:
    """Return a parser whose help shows defaults and whose errors are one line.

    Args:
        description: What its help begins with.
        required: What the line of usage shows besides options.
        packages: Optional packages that the command cannot do without. They are looked for as soon as the arguments
            are parsed, so that their lack does not end the command later.
        module: The command's module, if it can work in several processes: it gets the option `--launch`.
    """
    parser = CommandParser(
        prog=program_name(),
        usage=f"%(prog)s {required} [options]",
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.packages, parser.module = packages, module
    if module is not None:
        _add_launch(parser)
    return parser


def _add_launch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--launch",
        nargs="+",
        # Not one of the run's settings.
        default=argparse.SUPPRESS,
        metavar=("FILE", "OPTION=VALUE"),
        help="start processes by a launch file of Accelerate, one of this package's (cpu_2_processes, ddp, fsdp2, ...)"
        " or a path, with options of `accelerate launch` such as num_processes=4; if left out, one process",
    )


def _without_launch(argv: list[str]) -> list[str]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_launch(parser)
    return parser.parse_known_args(argv)[1]


def check_arguments(
    parser: argparse.ArgumentParser, args: argparse.Namespace, required: Sequence[str], counts: Sequence[str]
) -> None:
    """Exit with an error if an argument is missing or a count is below 1.

    Args:
        parser: Shows the error.
        args: What it parsed.
        required: Arguments that must be given.
        counts: Arguments that must be at least 1, if given.
    """
    for name in required:
        if getattr(args, name) is None:
            parser.error(f"--{name} is missing")
    for name in counts:
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")


def run_command(main: Callable[[], Any]) -> NoReturn:
    """Run a command and exit with its status.

    An error that the user can mend is one line; others keep their traceback.

    The status is 2 where an argument has to be changed, and 1 for other errors. With the environment variable
    TRANSFORMERS_NIM_DEBUG every error shows its traceback. Ctrl-C, SIGTERM and SIGUSR1 end a command with a line that
    says what is kept and how to go on, and with the status that shells expect: 128 and the signal's number.

    Args:
        main: The command's main function. If it returns an integer, that is the status.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        postpone_signals()
    else:
        catch_signals()
    if _launcher() is not None:
        end_with_parent()
    try:
        result = main()
    except KeyboardInterrupt as error:
        _exit_interrupted(error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT))
    except Exception as error:
        if os.environ.get(DEBUG) or not is_users_error(error):
            raise
        exit_with_error(program_name(), _describe(error), _status(error))
    sys.exit(result if isinstance(result, int) else 0)


def _exit_interrupted(error: Interrupted) -> NoReturn:
    """Say what is kept and how to go on, and exit."""
    if process_rank() == 0:
        text = f"{program_name()}: {error}"
        if error.options:
            text += f". Go on with: {shlex.join(_without(command_line(), error) + list(error.options))}"
        print(text, file=sys.stderr, flush=True)
    else:
        # The main process speaks for all. Launchers end it as soon as another one has ended.
        time.sleep(1)
    sys.exit(128 + error.number)


def command_line() -> list[str]:
    """Return the words with which the user has started this process, of a launcher if one has started it.

    Values of tokens are left out.
    """
    words = list(_launcher() or sys.orig_argv)
    if os.path.basename(words[0]).startswith("python"):
        is_script = len(words) > 1 and not words[1].startswith("-") and not words[1].endswith(".py")
        # As it is typed: `transformers-nim` and `accelerate` are scripts in the folder of Python.
        words = [os.path.basename(words[1]), *words[2:]] if is_script else ["python", *words[1:]]
    for place, word in enumerate(words):
        name, separator, _ = word.partition("=")
        if name in _SECRET and separator:
            words[place] = f"{name}=TOKEN"
        elif name in _SECRET and place + 1 < len(words):
            words[place + 1] = "TOKEN"
    return words


@functools.cache
def _launcher() -> list[str] | None:
    """Return the words with which a launcher was called that has started this process; None if there is none."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    try:
        text = os.fsdecode(Path(f"/proc/{os.getppid()}/cmdline").read_bytes())
    except OSError:
        # It has ended, or this is no Linux.
        return None
    words, own = text.split("\0")[:-1], sys.argv[1:]
    is_ours = PROGRAM in os.environ and "--launch" in words
    return words if is_ours or (own and words[-len(own) :] == own) else None


def _without(words: Sequence[str], error: Interrupted) -> list[str]:
    """Return words without options that are to be replaced, each with its value, or that must not be there."""
    kept: list[str] = []
    num_values = {error.options[0]: len(error.options) - 1} | dict.fromkeys(error.without, 0)
    to_skip = 0
    for word in words:
        name, separator, _ = word.partition("=")
        if to_skip:
            to_skip -= 1
        elif name in num_values:
            to_skip = 0 if separator else num_values[name]
        else:
            kept.append(word)
    return kept


def exit_with_error(program: str, message: str, status: int) -> NoReturn:
    """Print an error as one line, and exit.

    Of several processes the main one speaks. The others wait to be stopped, as launchers do when one process ends, and
    speak if nobody stops them: then the error is theirs alone.
    """
    # All is said.
    release_signals()
    rank = process_rank()
    if rank:
        time.sleep(PATIENCE)
        message = f"process {rank}: {message}"
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(status)


def is_users_error(error: Exception) -> bool:
    """Tell errors that a user can mend from bugs.

    A user can mend what a `raise` of this package says (but no assertion), what the operating system or the Hub says,
    and what libraries say while they read the model or data set that an argument names. All else is a bug.
    """
    *_, last = _steps(error.__traceback__)
    kind = type(error).__module__.split(".")[0]
    if isinstance(error, (AssertionError, NotImplementedError)):
        return False
    if isinstance(error, OSError) or kind in _LIBRARIES or kind == _PACKAGE:
        return True
    if isinstance(error, (ValueError, RuntimeError)) and _reader(error) is not None:
        return True
    return _is_ours(last.tb_frame) and _line(last).startswith("raise ")


def _steps(traceback: TracebackType | None):
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _reader(error: Exception) -> FrameType | None:
    """Return the call that was to read what a user has named, if the error comes from there."""
    frames = (step.tb_frame for step in _steps(error.__traceback__))
    return next((frame for frame in frames if frame.f_code.co_name in _READERS and not _is_ours(frame)), None)


def _is_ours(frame: FrameType) -> bool:
    # Not by its module's name, which is __main__ for the one that `python -m` runs.
    return frame.f_code.co_filename.startswith(_FOLDER)


def _line(step: TracebackType) -> str:
    return linecache.getline(step.tb_frame.f_code.co_filename, step.tb_lineno).strip()


def _status(error: Exception) -> int:
    """Return 2 for errors about arguments, and 1 for errors of the machine or of a run."""
    if isinstance(error, (ValueError, FileNotFoundError, NotADirectoryError)):
        return 2
    if getattr(error, "errno", None) is not None:
        return 1
    # Not of the operating system, so about what was named, if it was to be read.
    is_about_a_name = isinstance(error, OSError) and not isinstance(error, ConnectionError)
    return 2 if is_about_a_name or _reader(error) is not None else 1


def _describe(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if "Original Traceback (most recent call last)" in text:
        # From a worker that reads images.
        text = text.splitlines()[-1].partition(": ")[2]
    *_, last = _steps(error.__traceback__)
    if _is_ours(last.tb_frame):
        return text
    reader = _reader(error)
    name = str(reader.f_locals.get(_READERS[reader.f_code.co_name], "")) if reader is not None else ""
    if name and (name not in text or not os.path.exists(name)):
        text = f"cannot read {name}{'' if os.path.exists(name) else ', which is no file or folder here'}: {text}"
    return f"{text} ({DEBUG}=1 shows where)"
