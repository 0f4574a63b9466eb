# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Choose bf16 or fp32 on a CPU by a one-second benchmark; its name and flags do not tell how fast it is."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch.nn.functional import linear


# A smaller speedup is not worth the digits that bf16 drops.
WORTHWHILE = 1.2

# A CPU without bf16 emulates it, up to 20 times as slowly: a few rows show it, and the benchmark ends there.
_FEW_ROWS, _ROWS, _HOPELESS = 64, 1024, 0.5
# Widths of the MLP of ViT-Small.
_WIDTHS = (384, 1536)
_REPETITIONS = 5


@dataclass(frozen=True)
class Precision:
    """Precision of a run.

    Attributes:
        name: `"no"`, `"bf16"` or `"fp16"`, as in Accelerate; None for the launch file's.
        reason: Why it was chosen; empty if the user asked for it.
    """

    name: str | None
    reason: str = ""


def speedup(fp32: Sequence[float], bf16: Sequence[float]) -> float:
    """Return how many times as fast bf16 is, from the seconds that equal work took in fp32 and in bf16 (medians)."""
    return median(fp32) / median(bf16)


def faster_precision(measured: float) -> Precision:
    """Return the precision to train in on a CPU, given how many times as fast as fp32 bf16 is."""
    name = "bf16" if measured >= WORTHWHILE else "no"
    return Precision(name, f"measured: linear layers in bf16 are {measured:.2f}x as fast as in fp32")


def faster_cpu_precision() -> Precision:
    """Return bf16 if it is at least `WORTHWHILE` times as fast as fp32 on this CPU, else fp32 (`"no"`).

    Measures forward and backward passes of linear layers for about a second. Leaves the global random state alone.
    """
    measured = _measure(_FEW_ROWS)
    return faster_precision(measured if measured < _HOPELESS else _measure(_ROWS))


def _measure(rows: int) -> float:
    # The first pair warms up. fp32 and bf16 alternate, because other programs change a CPU's speed over time.
    pairs = [(_seconds(rows, in_bf16=False), _seconds(rows, in_bf16=True)) for _ in range(_REPETITIONS + 1)][1:]
    return speedup([fp32 for fp32, _ in pairs], [bf16 for _, bf16 in pairs])


def _seconds(rows: int, in_bf16: bool) -> float:
    narrow, wide = _WIDTHS
    # Constants, because drawing numbers would change the random state; speed does not depend on values.
    inputs, up, down = (
        torch.full(shape, 0.5, device="cpu", dtype=torch.float32, requires_grad=True)
        for shape in ((rows, narrow), (wide, narrow), (narrow, wide))
    )
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
        outputs = linear(linear(inputs, up), down)
    torch.autograd.grad(outputs.sum(), (inputs, up, down))
    return time.perf_counter() - started
