# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Tests of transformers_nim.utils.memory."""

import platform
import subprocess
import sys

import pytest

from transformers_nim.utils import memory


# Page faults of a loop that allocates and frees blocks of 64 MB, once it has found its place in memory.
COUNT_FAULTS = """
import resource, sys, torch
from transformers_nim.utils.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    blocks = [torch.empty(16_000_000).fill_(1.0) for _ in range(2)]
for _ in range(20):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_freed_memory_is_used_again():
    def faults(mode):
        command = [sys.executable, "-c", COUNT_FAULTS, mode]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    # 10 blocks of at least 30 huge or 15,000 small pages.
    assert faults("leave") > 100
    assert faults("keep") < 20


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False
