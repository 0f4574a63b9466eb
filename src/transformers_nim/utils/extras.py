# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Import optional packages, and name the extra that installs a missing one."""

import importlib
from types import ModuleType


# From an importable name to the extra of this package that installs it.
_EXTRA_OF = {
    "accelerate": "train",
    "datasets": "train",
    "evaluate": "train",
    "matplotlib": "train",
    "sklearn": "train",
    "timm": "train",
    "tensorboard": "train",
    "tqdm": "train",
    "scipy": "certify",
    "torchattacks": "attacks",
    "pyautoattack": "autoattack",
    "gradio": "demo",
    "detect_secrets": "push",
}


def require(name: str) -> ModuleType:
    """Import an optional module, such as `"matplotlib.pyplot"`.

    Raises:
        ImportError: It is not installed; the message says which extra installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.split(".")[0]
        if (error.name or "").split(".")[0] != package:
            raise
        raise ImportError(
            f"this needs the package {package!r}: pip install 'transformers-nim[{_EXTRA_OF[package]}]'"
        ) from error
