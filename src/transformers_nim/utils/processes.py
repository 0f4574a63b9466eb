# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Start processes that work together through Accelerate."""

import os
from datetime import timedelta
from typing import Any

import torch

from .extras import require
from .memory import keep_freed_memory
from .text_table import plural


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
