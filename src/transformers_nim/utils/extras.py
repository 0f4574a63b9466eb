# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Import optional packages, and name the extra that installs a missing one."""

import importlib
import importlib.util
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
# Packages that no extra installs, because their own pins bring old packages with known advisories. The extra installs
# what they import.
_WITHOUT_PINS = {"torchattacks": "torchattacks==3.5.1"}


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
        raise _missing([package]) from error


def check_installed(*packages: str) -> None:
    """Check that optional packages are installed, without importing them.

    Raises:
        ImportError: Some are not; the message says which extras install them.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise _missing(missing)


def _missing(packages: list[str]) -> ImportError:
    extras = ",".join(sorted({_EXTRA_OF[package] for package in packages}))
    names = ", ".join(map(repr, packages))
    noun = "package" if len(packages) == 1 else "packages"
    more = [_WITHOUT_PINS[package] for package in packages if package in _WITHOUT_PINS]
    commands = [f"pip install 'transformers-nim[{extras}]'", *(f"pip install --no-deps {package}" for package in more)]
    return ImportError(f"this needs the {noun} {names}: {' && '.join(commands)}")
