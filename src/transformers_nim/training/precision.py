# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Whether a CPU is faster in bf16: found by trying, as its name and its flags do not say how fast it is."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch.nn.functional import linear


# Less is not worth the digits that bf16 drops.
WORTHWHILE = 1.2

# A CPU without bf16 imitates it, up to 20 times as slowly: few rows tell, and the many are spared.
_FEW_ROWS, _ROWS, _HOPELESS = 64, 1024, 0.5
# Of a layer of ViT-Small's MLP.
_WIDTHS = (384, 1536)
_REPETITIONS = 5


@dataclass(frozen=True)
class Precision:
    """What a run computes in.

    Attributes:
        name: `"no"`, `"bf16"` or `"fp16"`, as Accelerate calls it; None for what the launch file says.
        reason: Why, if it was not asked for; else empty.
    """

    name: str | None
    reason: str = ""


def speedup(fp32: Sequence[float], bf16: Sequence[float]) -> float:
    """How many times as fast bf16 is, by the median of seconds that the same work took in fp32 and in bf16."""
    return median(fp32) / median(bf16)


def faster_precision(measured: float) -> Precision:
    """The precision to train in on a CPU where bf16 is so many times as fast as fp32."""
    name = "bf16" if measured >= WORTHWHILE else "no"
    return Precision(name, f"measured: linear layers in bf16 are {measured:.2f}x as fast as in fp32")


def faster_cpu_precision() -> Precision:
    """Measures forward and backward passes of linear layers, for about a second.

    The global random state stays as it is.

    Returns:
        `"bf16"` if it is at least `WORTHWHILE` times as fast as fp32, else `"no"`.
    """
    measured = _measure(_FEW_ROWS)
    return faster_precision(measured if measured < _HOPELESS else _measure(_ROWS))


def _measure(rows: int) -> float:
    # The first of each sets up what the others use. In turns, as a CPU that others use too changes its pace.
    pairs = [(_seconds(rows, in_bf16=False), _seconds(rows, in_bf16=True)) for _ in range(_REPETITIONS + 1)][1:]
    return speedup([fp32 for fp32, _ in pairs], [bf16 for _, bf16 in pairs])


def _seconds(rows: int, in_bf16: bool) -> float:
    narrow, wide = _WIDTHS
    # Speed does not depend on values, and drawing some would move the random state.
    inputs, up, down = (
        torch.full(shape, 0.5, device="cpu", dtype=torch.float32, requires_grad=True)
        for shape in ((rows, narrow), (wide, narrow), (narrow, wide))
    )
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
        outputs = linear(linear(inputs, up), down)
    torch.autograd.grad(outputs.sum(), (inputs, up, down))
    return time.perf_counter() - started
