# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Tests of transformers_nim.utils.memory."""

import platform
import subprocess
import sys

import pytest

from transformers_nim.utils import memory


# Page faults of a loop that allocates and frees blocks of 64 MB, once it has found its place in memory.
COUNT_FAULTS = """
import resource, torch
from transformers_nim.utils.memory import keep_freed_memory
def step():
    blocks = [torch.empty(16_000_000).fill_(1.0) for _ in range(2)]
def count_faults():
    for _ in range(10):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
left = count_faults()
assert keep_freed_memory()
print(left, count_faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_freed_memory_is_used_again():
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True)
    left, kept = map(int, done.stdout.split())
    # 10 blocks of at least 30 huge or 15,000 small pages.
    assert left > 100
    assert kept < 20


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False
