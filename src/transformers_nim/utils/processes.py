# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Processes that work together through Accelerate."""

import os
from typing import Any

import torch

from .extras import require


def train_on_cpu() -> bool:
    """What to pass to an `Accelerator` as `cpu`: whether there is no GPU, or none is wanted.

    Without it, processes that torchrun starts on a machine without GPUs would not find each other.
    """
    return not torch.accelerator.is_available() or require("accelerate.utils").parse_flag_from_env(
        "ACCELERATE_USE_CPU"
    )


def check_processes(accelerator: Any) -> None:
    """Makes sure that all processes that were started work together.

    Raises:
        ValueError: They do not: each would do all the work, into the same folder.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ValueError(
            f"{launched} processes were started, but Accelerate sees {accelerator.num_processes}; set"
            " ACCELERATE_USE_CPU=true to use CPUs, or check the launch file"
        )
