# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Declares the markers of transformers' own tests, which `--strict-markers` asks for."""

_MARKERS = (
    "accelerate_tests",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "flash_attn_test",
    "torch_compile_test",
    "torch_export_test",
)


def pytest_configure(config):
    for name in _MARKERS:
        config.addinivalue_line("markers", f"{name}: of transformers' own tests")
