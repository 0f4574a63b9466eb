# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The page about classifiers of all kinds: its snippets run, with small models in place of downloads."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import random_picture

from transformers_nim import robustness


PAGE = (Path(__file__).parents[1] / "docs" / "any_classifier.md").read_text(encoding="utf-8")
SNIPPETS = {
    part.split("\n", 1)[0]: re.findall(r"```python\n(.*?)```", part, re.DOTALL) for part in PAGE.split("\n## ")[1:]
}
NEEDS = {"timm": "timm", "Your own pictures": "datasets", "Attacks of other libraries": "torchattacks"}
SMALL = {'"resnet50.a1_in1k", pretrained=True': '"resnet10t"', 'weights="DEFAULT"': "num_classes=3"}
FEW = {"steps": 1, "num_draws": 1, "num_queries": 2, "num_check_images": 1}


def test_every_kind_has_a_snippet():
    assert [len(snippets) for snippets in SNIPPETS.values()] == [1] * 7 + [0]


@pytest.mark.parametrize("title", [title for title, snippets in SNIPPETS.items() if snippets])
def test_snippet(title, robust_path, vit_path, tmp_path, monkeypatch, capsys):
    pytest.importorskip(NEEDS.get(title, "torch"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model_cards").mkdir()
    (tmp_path / "model_cards" / "nim-vit-tiny-patch8-32-cifar10").symlink_to(robust_path)
    for label in (0, 1):
        (tmp_path / "pictures" / f"LABEL_{label}").mkdir(parents=True)
        random_picture(label).save(tmp_path / "pictures" / f"LABEL_{label}" / "picture.png")
    quick = partial(robustness.evaluate_robustness, budget=FEW, progress=False)
    monkeypatch.setattr(robustness, "evaluate_robustness", quick)
    (text,) = SNIPPETS[title]
    for download, small in {**SMALL, '"facebook/convnext-tiny-224"': repr(vit_path)}.items():
        text = text.replace(download, small)
    names = {"images": torch.rand(1, 3, 32, 32), "labels": torch.tensor([1])}
    exec(compile(text, "docs/any_classifier.md", "exec"), names)
    if "report" in names:
        assert len(names["report"].images) == (2 if title == "Your own pictures" else 1)
    else:
        assert (names["adversarial"] - names["images"]).abs().max() <= 8 / 255 + 1e-6
    if title == "Your own pictures":
        assert {path.name for path in (tmp_path / "report").glob("*.png")} >= {"tradeoff.png", "eps_curve.png"}
        assert (tmp_path / "report" / "results.json").exists()
    if title == "Another random defense":
        assert capsys.readouterr().out == "seeded\n"
