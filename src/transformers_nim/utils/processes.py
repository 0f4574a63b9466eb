# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Start processes that work together through Accelerate."""

import difflib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, NoReturn

import torch

from .extras import require
from .interruption import catch_signals
from .memory import keep_freed_memory
from .text_table import plural


# Files for `accelerate launch --config_file`.
LAUNCH_FILES = Path(__file__).parents[1] / "launch_files"
# Optional packages that measurements cannot do without.
MEASURING_PACKAGES = ("accelerate", "datasets", "matplotlib", "tqdm")
# Seconds that processes have to keep what they have done, once a signal has come.
SHUTDOWN_SECONDS = 600
# The variable by which processes know how the user has called the command.
PROGRAM = "TRANSFORMERS_NIM_PROGRAM"
# Where Accelerate looks for a process's number, too.
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def launch(module: str, program: str, choice: Sequence[str], arguments: Sequence[str]) -> int:
    """Run a module in the processes of a launch file of Accelerate, and return its exit status.

    It does what `accelerate launch --config_file FILE -m MODULE ARGUMENTS` does, but where a process has failed, no
    traceback of the launcher follows what the process has printed. Signals are passed on, and processes waited for:
    none outlives this one.

    Args:
        module: Module to run.
        program: How the user has called it, for usage and errors.
        choice: The name of a file in `launch_files` or a path; then options of `accelerate launch`, such as
            `"num_processes=4"`.
        arguments: Arguments of the module.

    Raises:
        ValueError: There is no such file or option.
        OSError: The processes cannot be started; mostly, their port is taken.
    """
    commands = require("accelerate.commands.launch")
    parser = commands.launch_command_parser()
    options = ["--config_file", str(launch_file(choice[0])), *launch_options(parser, choice[1:]), "-m", module]
    print(f"accelerate launch {' '.join(options)} ...", file=sys.stderr, flush=True)
    elastic = require("torch.distributed.elastic.multiprocessing.api")
    failed = require("torch.distributed.elastic.multiprocessing.errors").ChildFailedError
    os.environ[PROGRAM] = program
    # Seconds that processes have for their last checkpoint; by default few.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))
    psutil = require("psutil")

    def pass_on(number: int, frame: FrameType | None) -> None:
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                child.send_signal(number)

    # A launcher of several processes sets its own, which do the same, for all but SIGUSR1.
    handlers = {number: signal.signal(number, pass_on) for number in catch_signals()}
    # The launcher reports failed processes in many lines, beside their own.
    logging.disable(logging.ERROR)
    try:
        commands.launch_command(parser.parse_args([*options, *arguments]))
    except subprocess.CalledProcessError as error:
        return _exit_status(error.returncode)
    except failed as error:
        return _exit_status(error.get_first_failure()[1].exitcode)
    except elastic.SignalException as error:
        return 128 + error.sigval
    finally:
        logging.disable(logging.NOTSET)
        os.environ.pop(PROGRAM, None)
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                # Not what libraries have started for this process.
                if module in child.cmdline():
                    child.kill()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


def launch_file(name: str) -> Path:
    """Return the path of a launch file, of this package by its name or of the user's own.

    Raises:
        ValueError: There is none.
    """
    path = Path(name) if Path(name).suffix else LAUNCH_FILES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in LAUNCH_FILES.glob("*.yaml")))
        raise ValueError(f"--launch {name}: no such launch file; pass a path, or a name of this package's: {known}")
    return path


def launch_options(parser: Any, pairs: Sequence[str]) -> list[str]:
    """Return `OPTION=VALUE` as options for Accelerate's parser, which raises its errors from then on.

    Raises:
        ValueError: There is no such option.
    """
    known = [name.removeprefix("--") for name in parser._option_string_actions if name.startswith("--")]
    options = []
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"; did you mean {near[0]}=VALUE?" if near else ""
            raise ValueError(f"--launch takes options of `accelerate launch` as OPTION=VALUE, got {pair!r}{advice}")
        options += [f"--{name}", value]

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"--launch: {message}")

    # By itself it prints all its options, and exits.
    parser.error = refuse
    return options


def _exit_status(code: int) -> int:
    if code >= 0:
        return code
    # It could not say so itself.
    print(f"a process was ended by {signal.Signals(-code).name}", file=sys.stderr)
    return 128 - code


def program_name() -> str:
    """Return how this program was called, which usage and errors name."""
    if PROGRAM in os.environ:
        return os.environ[PROGRAM]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or spec.name == f"{__name__.split('.')[0]}.__main__":
        # A script, or transformers-nim, which puts itself and the command there.
        return os.path.basename(sys.argv[0])
    # Accelerate sets this for what it launches.
    starter = "accelerate launch" if "ACCELERATE_MIXED_PRECISION" in os.environ else "python"
    return f"{starter} -m {spec.name.removesuffix('.__main__')}"


def process_rank() -> int:
    """Return the number of this process among those of its run, as a launcher or MPI says; 0 if it is alone."""
    return next((int(os.environ[name]) for name in _RANKS if name in os.environ), 0)


@dataclass(frozen=True)
class OneProcess:
    """Stand-in for an `Accelerator` in a single process, without Accelerate.

    Attributes:
        device: Where models and images are.
    """

    device: torch.device
    process_index: ClassVar[int] = 0
    num_processes: ClassVar[int] = 1
    is_main_process: ClassVar[bool] = True

    def wait_for_everyone(self) -> None:
        """Return at once."""


def train_on_cpu() -> bool:
    """Return whether to work on the CPU, because there is no GPU or the user wants none.

    Pass it to an `Accelerator` as `cpu`: without it, processes that torchrun starts on a machine without GPUs do not
    find each other.
    """
    return not torch.accelerator.is_available() or require("accelerate.utils").parse_flag_from_env(
        "ACCELERATE_USE_CPU"
    )


def check_processes(accelerator: Any) -> None:
    """Check that all processes that were started work together.

    Raises:
        ValueError: They do not, so each would do all the work and write it into the same folder.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ValueError(
            f"{plural(launched, 'process')} started, but Accelerate sees {accelerator.num_processes}; set"
            " ACCELERATE_USE_CPU=true to use CPUs, or check the launch file"
        )


def measuring_accelerator() -> Any:
    """Return an `Accelerator` for measurements, whose processes wait for each other as long as it takes.

    Raises:
        ImportError: Accelerate is not installed.
        ValueError: Processes do not find each other.
    """
    accelerate = require("accelerate")
    patience = accelerate.InitProcessGroupKwargs(timeout=timedelta(weeks=4))
    accelerator = accelerate.Accelerator(cpu=train_on_cpu(), kwargs_handlers=[patience])
    check_processes(accelerator)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator
