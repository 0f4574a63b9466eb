# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The snippets of CONTRIBUTING.md run, and versions are the same wherever they stand."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

from transformers_nim import NIMConfig
from transformers_nim.attacks import registry
from transformers_nim.model import noise


ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture
def names(monkeypatch):
    monkeypatch.setattr(registry, "_ATTACKS", dict(registry._ATTACKS))
    monkeypatch.setattr(noise, "_DISTRIBUTIONS", dict(noise._DISTRIBUTIONS))

    def run(snippet):
        # Its classes are told apart by their module.
        found = {"__name__": "contributed"}
        exec(compile(snippet, "CONTRIBUTING.md", "exec"), found)
        return found

    return run


def test_the_attack_stays_in_its_ball(names):
    attack = names(SNIPPETS[0])["attack"]
    pixels, labels = torch.full((2, 3, 4, 4), 0.5), torch.tensor([0, 1])
    delta = attack(lambda pixels: pixels.mean((2, 3)), pixels, labels, eps=0.1) - pixels
    assert torch.allclose(delta.abs(), torch.full_like(delta, 0.1))
    assert delta[0, 0, :2, :2].unique().numel() == 1
    assert delta[0, 0, 0, 0].sign() == -delta[0, 0, 0, 2].sign()
    assert attack(lambda pixels: pixels.mean((2, 3)), pixels, labels, eps=0.1, norm="L2").shape == pixels.shape


def test_the_distribution_is_drawn_and_kept_in_a_config(names):
    sigma = names(SNIPPETS[1])["sigma"]
    drawn = sigma.sample(100, generator=torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {25, 75}
    assert sigma.mean == 50
    config = NIMConfig(finetuning_sigma={"type": "either", "first": 25, "second": 75})
    assert config.to_dict()["finetuning_sigma"] == {"type": "either", "first": 25, "second": 75}
    assert len(SNIPPETS) == 2


def test_versions_agree():
    version = PROJECT["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()
    (ruff,) = [one for one in PROJECT["project"]["optional-dependencies"]["dev"] if one.startswith("ruff")]
    assert set(re.findall(r"ruff==[\d.]+", (ROOT / ".pre-commit-config.yaml").read_text())) == {ruff}
