# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import sys

import pytest

from transformers_nim.utils import extras


def test_missing_extra_is_named(monkeypatch):
    for module, extra in (("torchattacks", "attacks"), ("matplotlib.pyplot", "train"), ("gradio", "demo")):
        # None in sys.modules is how Python marks a module that cannot be imported.
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.setitem(sys.modules, module.split(".")[0], None)
        with pytest.raises(ImportError, match=rf"pip install 'transformers-nim\[{extra}\]'"):
            extras.require(module)


def test_errors_inside_an_installed_package_are_shown(monkeypatch, tmp_path):
    (tmp_path / "timm.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        extras.require("timm")


def test_installed_module_is_returned():
    assert extras.require("sklearn.datasets").__name__ == "sklearn.datasets"
