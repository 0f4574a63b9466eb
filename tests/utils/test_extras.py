# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import sys
import tomllib
from pathlib import Path

import pytest

from transformers_nim.utils import extras


def test_missing_extra_is_named(monkeypatch):
    for module, extra in (("torchattacks", "attacks"), ("matplotlib.pyplot", "train"), ("gradio", "demo")):
        # None in sys.modules is how Python marks a module that cannot be imported.
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.setitem(sys.modules, module.split(".")[0], None)
        with pytest.raises(ImportError, match=rf"pip install 'transformers-nim\[{extra}\]'"):
            extras.require(module)


def test_torchattacks_is_installed_without_its_pins(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(ImportError, match=r"\[attacks\]' && pip install --no-deps torchattacks==3.5.1$"):
        extras.require("torchattacks")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    needed = [one for extra in project["optional-dependencies"].values() for one in extra]
    assert not [one for one in needed if one.startswith("torchattacks")]


def test_errors_inside_an_installed_package_are_shown(monkeypatch, tmp_path):
    (tmp_path / "timm.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        extras.require("timm")


def test_installed_module_is_returned():
    assert extras.require("sklearn.datasets").__name__ == "sklearn.datasets"
