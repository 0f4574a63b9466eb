# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The checkpoints that the repository ships with weights do what their cards say of their use."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import pipeline

from transformers_nim import NIMForRobustImageClassification
from transformers_nim.attacks import PixelClassifier, make_attack


ROOT = Path(__file__).parent.parent
FOLDERS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/model.safetensors"))
MAX_BYTES = 16e6
pytestmark = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def picture(name: str) -> Image.Image:
    return Image.open(ROOT / "examples" / "pictures" / f"{name}.png")


def test_weights_are_small_and_complete(folder):
    assert (folder / "model.safetensors").stat().st_size < MAX_BYTES
    model, info = NIMForRobustImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert model.dtype == torch.float32
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_pipeline_knows_a_ship_at_every_sigma(folder):
    pipe = pipeline("image-classification", model=str(folder), num_samples=8, seed=0)
    for sigma in (None, 0, 25, 50, 75, 100):
        assert pipe(picture("ship"), sigma=sigma, top_k=1)[0]["label"] == "ship"
        assert pipe(picture("airplane"), sigma=sigma, top_k=1)[0]["label"] == "airplane"


def test_a_ship_can_be_certified(folder):
    pipe = pipeline("image-classification", model=str(folder), certify=True, sigma=63.75, n=200, seed=0)
    answer = pipe(picture("ship"))[0]
    assert answer["label"] == "ship"
    assert answer["radius"] > 0.12


def test_without_the_defense_an_attack_turns_the_ship_into_something_else(folder):
    """And what was found is within eps: the weights are of a network that has something to defend."""
    pipe = pipeline("image-classification", model=str(folder))
    pixels = pipe.image_processor(picture("ship"), do_normalize=False, return_tensors="pt")["pixel_values"]
    labels = torch.tensor([pipe.model.config.label2id["ship"]])
    attack = make_attack("eot_pgd", steps=20, num_draws=1, restarts=1)
    classifier = PixelClassifier(pipe.model, sigma=None)
    adversarial = attack(classifier, pixels, labels, norm="Linf", eps=16 / 255, seeds=[0])
    assert (adversarial - pixels).abs().max() <= 16 / 255 + 1e-6
    assert classifier(adversarial).argmax(-1) != labels


def test_accuracy_on_the_card_is_from_training_images_that_were_held_out(folder):
    training = json.loads((folder / "all_results.json").read_text())
    assert training["arguments"]["validation_split_name"] is None
    assert training["arguments"]["train_val_split"] > 0
    assert training["num_eval_images"] == 2000
