# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Processes that do not find each other are noticed."""

from types import SimpleNamespace

import pytest

from transformers_nim.utils.processes import check_processes


def test_processes_that_do_not_find_each_other(monkeypatch):
    alone = SimpleNamespace(num_processes=1)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    check_processes(alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_processes(SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match="2 processes started, but Accelerate sees 1; set ACCELERATE_USE_CPU=true"):
        check_processes(alone)
