# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Public names are documented, and the examples in their docstrings run."""

import doctest
import inspect
import re

import pytest

import transformers_nim
import transformers_nim.training


# What they do is said by what they override.
OVERRIDES = {"process_image", "fetch_images", "resize", "preprocess", "postprocess", "get_iterator", "sample", "mean"}


def documented():
    """Every public name, and the public methods that its class defines itself."""
    public = [(module, name) for module in (transformers_nim, transformers_nim.training) for name in module.__all__]
    for module, name in public:
        value = getattr(module, name)
        if callable(value):
            yield name, value
        if inspect.isclass(value):
            for method, function in vars(value).items():
                is_method = inspect.isfunction(inspect.unwrap(function))
                if is_method and not method.startswith("_") and method not in OVERRIDES:
                    yield f"{name}.{method}", function


DOCUMENTED = dict(documented())


def test_examples_are_found():
    assert sum(">>>" in (value.__doc__ or "") for value in DOCUMENTED.values()) >= 4


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstring(name):
    text = DOCUMENTED[name].__doc__
    assert text, f"{name} has no docstring"
    # What transformers' auto_docstring writes where it cannot infer a name.
    assert not re.search(r"\[`None`\]|None Model|of a None", text), name


@pytest.mark.parametrize("name", [name for name, value in DOCUMENTED.items() if ">>>" in (value.__doc__ or "")])
def test_example_runs(name, capsys):
    (test,) = doctest.DocTestFinder(recurse=False).find(DOCUMENTED[name], name, globs={})
    # A code fence closes the example.
    test.examples[-1].want = test.examples[-1].want.replace("```\n", "")
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0, capsys.readouterr().out
