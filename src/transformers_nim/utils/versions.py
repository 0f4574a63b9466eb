# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Report the versions of the packages that measured figures depend on."""

import importlib
import platform


VERSION = "0.1.0"


def package_versions(*further: str) -> dict[str, str]:
    """Return the versions of Python, torch, transformers, this package and `further` ones (names to import)."""
    names = ("torch", "transformers", *further)
    versions = {name: str(importlib.import_module(name).__version__) for name in names}
    return {"python": platform.python_version(), **versions, "transformers_nim": VERSION}
