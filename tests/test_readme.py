# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Every Python snippet of the README runs."""

import re
from pathlib import Path

import pytest
import torch
from conftest import save_with_processor, tiny_model
from PIL import Image
from torchvision.transforms.functional import to_pil_image
from transformers import pipeline

from transformers_nim.attacks import PixelClassifier, make_attack


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


@pytest.mark.slow
def test_what_is_said_of_other_pictures_and_attackers():
    model = ROOT / "model_cards" / "nim-vit-tiny-patch8-32-cifar10-adversarial"
    pipe = pipeline("image-classification", model=str(model), num_samples=16, seed=0, top_k=1)

    def attacked(name, num_draws, sigma):
        picture = Image.open(ROOT / "examples" / "pictures" / f"{name}.png")
        pixels = pipe.image_processor(picture, do_normalize=False, return_tensors="pt")["pixel_values"]
        labels = torch.tensor([pipe.model.config.label2id[name]])
        attack = make_attack("eot_pgd", steps=20, num_draws=num_draws, restarts=1)
        classifier = PixelClassifier(pipe.model, sigma=sigma)
        return to_pil_image(attack(classifier, pixels, labels, norm="Linf", eps=8 / 255, seeds=[0])[0])

    def answers(picture, *sigmas):
        return {pipe(picture, sigma=sigma)[0]["label"] for sigma in sigmas}

    every = (None, 0, 25, 50, 75, 100)
    assert answers(attacked("automobile", 8, 50), 50) == {"truck"}
    assert answers(attacked("ship", 1, None), *every) == {"ship"}
    assert answers(attacked("ship", 8, 50), *every) == {"ship"}
    cat = Image.open(ROOT / "examples" / "pictures" / "cat.png")
    assert answers(cat, *every) == {"frog"}


def test_relative_links_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
