# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What a CPU trains in, by what was measured; how fast this one is, is not tested."""

import random

import numpy as np
import pytest
import torch

from transformers_nim.training import precision
from transformers_nim.training.precision import faster_cpu_precision, faster_precision, speedup


@pytest.mark.parametrize(
    ("measured", "name", "shown"),
    [
        (1.9, "bf16", "1.90x"),
        (1.2, "bf16", "1.20x"),
        (1.19, "no", "1.19x"),
        (1.0, "no", "1.00x"),
        (0.05, "no", "0.05x"),
    ],
)
def test_bf16_has_to_be_worth_it(measured, name, shown):
    found = faster_precision(measured)
    assert found.name == name
    assert found.reason == f"measured: linear layers in bf16 are {shown} as fast as in fp32"


def test_one_slow_repetition_decides_nothing():
    assert speedup([2.0, 2.0, 90.0], [1.0, 50.0, 1.0]) == 2


@pytest.mark.parametrize(
    ("bf16", "name", "rows"), [(0.5, "bf16", [64, 1024]), (1.0, "no", [64, 1024]), (20.0, "no", [64])]
)
def test_measured_in_turns(monkeypatch, bf16, name, rows):
    """On a machine where fp32 takes a second. One that imitates bf16 is not kept waiting."""
    calls = []

    def seconds(rows, in_bf16):
        calls.append((rows, in_bf16))
        # The first of each is slow.
        return 100.0 if (rows, in_bf16) not in calls[:-1] else bf16 if in_bf16 else 1.0

    monkeypatch.setattr(precision, "_seconds", seconds)
    assert faster_cpu_precision().name == name
    assert calls == [(number, in_bf16) for number in rows for _ in range(6) for in_bf16 in (False, True)]


def test_measuring_leaves_no_trace():
    torch.manual_seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert faster_cpu_precision().name in ("no", "bf16")
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert not torch.is_autocast_enabled("cpu")
