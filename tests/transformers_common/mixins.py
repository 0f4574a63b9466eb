# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Imports transformers' test mixins, with stand-ins for what its source distribution leaves out.

The source distribution has `tests/test_*.py` but none of the folders below `tests`, from which these files import a
few names. They are imported as a package of another name, so that nothing else called `tests` is in their way.
"""

import contextlib
import importlib
import os
import sys
import types
from unittest import mock

import pytest
import transformers

from .sdist import SdistUnavailable, find_tests


_PACKAGE = "transformers_own_tests"

# Values other than the defaults for what every transformers config has. ConfigTester compares dtype with float16.
_COMMON_CONFIG_VALUES = {
    "architectures": ["SomeModel"],
    "output_hidden_states": True,
    "return_dict": False,
    "dtype": "float16",
    "chunk_size_feed_forward": 2,
    "is_encoder_decoder": True,
    "id2label": {0: "only"},
    "label2id": {"only": 0},
    "problem_type": "regression",
}


def _no_tests(name: str) -> type:
    """In place of a mixin whose tests are not in the source distribution."""
    return type(name, (), {})


# Modules the mixins import that are missing, and what is taken from them.
_STAND_INS = {
    # Export with transformers' exporters; test_modeling_common.py has export tests on plain torch instead.
    "exporters.test_export": {"ExportTesterMixin": _no_tests("ExportTesterMixin")},
    # Text generation, which NIM models cannot do.
    "generation.test_utils": {"GenerationTesterMixin": _no_tests("GenerationTesterMixin")},
    "utils.test_configuration_utils": {"config_common_kwargs": _COMMON_CONFIG_VALUES},
}


def import_mixin(name: str) -> types.ModuleType:
    """Imports a module of transformers' tests, such as `"test_modeling_common"`.

    Where the source distribution cannot be had, the tests that need it are skipped. In continuous integration, where
    nobody would notice, they fail.
    """
    tests, reason = None, None
    try:
        tests = find_tests()
    except SdistUnavailable as error:
        reason = f"transformers' own tests cannot be run: {error}"
    if tests is None:
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason, allow_module_level=True)
    if _PACKAGE not in sys.modules:
        _add_module(_PACKAGE, __path__=[str(tests)])
        for path, names in _STAND_INS.items():
            if not (tests / f"{path.replace('.', '/')}.py").exists():
                _add_module(f"{_PACKAGE}.{path.split('.')[0]}", __path__=[])
                _add_module(f"{_PACKAGE}.{path}", **names)
    # Not in the source distribution either: where a photograph lies. The one test that asks for it is given another.
    photographs = types.SimpleNamespace(url_to_local_path=lambda url: url)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(sys.modules, {"fetch_hub_objects_for_ci": photographs}))
        # They import transformers from the repository that they lie in; here it is the installed one.
        stack.enter_context(mock.patch("transformers.utils.direct_transformers_import", return_value=transformers))
        # They add folders that do not exist here.
        stack.enter_context(mock.patch.object(sys, "path", list(sys.path)))
        return importlib.import_module(f"{_PACKAGE}.{name}")


def _add_module(name: str, **attributes) -> None:
    module = types.ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module
