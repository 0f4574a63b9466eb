# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Every Python snippet of the README runs."""

import re
from pathlib import Path

import pytest
from conftest import save_with_processor, tiny_model


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_snippets():
    assert len(SNIPPETS) == 6
    assert all("import" in snippet for snippet in SNIPPETS)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.split("\n", 1)[0])
def test_snippet(snippet, tmp_path, monkeypatch, capsys):
    """In a clone where the quickstart has left a model (here a random one of the same shape)."""
    monkeypatch.chdir(tmp_path)
    for name in ("model_cards", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    model = tiny_model(num_channels=1, image_size=8, patch_size=2, num_labels=10)
    save_with_processor(model, tmp_path / "outputs" / "quickstart")
    exec(compile(snippet, "README.md", "exec"), {})
    if "print" in snippet:
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) >= snippet.count("print(")
        assert all("score" in line for line in lines[-snippet.count("print(") :])
    if "attacked.png" in snippet:
        # The README shows what this prints; scores differ in the last digits from machine to machine.
        shown = README.split(snippet)[1].split("```")[2].strip().splitlines()
        assert [line.split("'score'")[0] for line in lines] == [line.split("'score'")[0] for line in shown]
    assert (tmp_path / "outputs" / "denoised.png").exists() == ("denoised.png" in snippet)
    assert (tmp_path / "attacked.png").exists() == ("attacked.png" in snippet)


def test_relative_links_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
