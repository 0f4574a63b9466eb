# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Work for measured processes that prepares in no time: importing and building models takes longer than the tests."""

import os
import time

import torch
from measure import Work


def pause(seconds: float) -> Work:
    """Sleep. The fact `cost` grows with the seconds."""
    facts = {"cost": seconds, "process": os.getpid(), "threads": torch.get_num_threads()}
    return Work(lambda: time.sleep(seconds), items=4, flops=5.0, facts=facts)


def fail(message: str) -> Work:
    raise ValueError(message)
