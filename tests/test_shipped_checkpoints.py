# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The checkpoints that the repository ships with weights are those of their results, and do what their cards say."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageClassification, pipeline

from transformers_nim.attacks import PixelClassifier, make_attack
from transformers_nim.robustness import RobustnessReport
from transformers_nim.robustness.classifiers import has_defense, model_hash


ROOT = Path(__file__).parent.parent
FOLDERS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/model.safetensors"))
README = (ROOT / "README.md").read_text()
MAX_BYTES = 16e6
# The lines of the README's table of attacks: name and sigma, by the ending of the folder's name.
SHOWN = {
    "-undefended": {"fine-tuned on clean images, no defense": None},
    "-pgd": {"adversarially trained, no defense": None},
    "": {"De³, off": None, "De³, sigma 50": 50},
    "-adversarial": {"De³, adversarially trained, off": None, "De³, adversarially trained, sigma 50": 50},
}
pytestmark = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


@pytest.fixture
def model(folder):
    return AutoModelForImageClassification.from_pretrained(folder)


def picture(name: str) -> Image.Image:
    return Image.open(ROOT / "examples" / "pictures" / f"{name}.png")


def results_of(folder: Path) -> list[dict]:
    """All result files that the card is made from."""
    return [
        json.loads((folder / name).read_text()) for name in json.loads((folder / "card.json").read_text())["results"]
    ]


def is_adversarial(folder: Path) -> bool:
    return json.loads((folder / "all_results.json").read_text())["arguments"]["adversarial_steps"] > 0


def test_weights_are_small_and_complete(folder):
    assert (folder / "model.safetensors").stat().st_size < MAX_BYTES
    model, info = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert model.dtype == torch.float32
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_results_are_of_these_weights(folder, model):
    measured = [results for results in results_of(folder) if "settings" in results]
    # Attacks, and certificates where there is a defense that can have them.
    assert len(measured) == (2 if has_defense(model) else 1)
    assert {results["settings"]["model_hash"] for results in measured} == {model_hash(model)}


def test_the_first_table_of_the_card_is_of_attacks_that_know_the_defense(folder):
    card = (folder / "README.md").read_text().split("\n---\n", 1)[1]
    table = card.split("\n| ", 1)[1].split("\n\n", 1)[0]
    report = RobustnessReport.load(folder / "robustness.json")
    strongest = report.strongest(report.settings["sigma"])
    assert {"eot_pgd", "eot_apgd_ce"} <= {report.configuration(name).attack for name in strongest.candidates}
    assert f"on each image | {len(report.images):6} | {strongest.row.accuracy!s:>17} |" in table


def test_the_readme_shows_what_was_measured(folder):
    """A line of its first table for every sigma of a model that it shows."""
    report = RobustnessReport.load(folder / "robustness.json")
    for name, sigma in SHOWN[folder.name.removeprefix("nim-vit-tiny-patch8-32-cifar10")].items():
        row = report.strongest(sigma).row
        figures = [str(accuracy) for accuracy in (row.clean, row.accuracy, row.worst_of_10)]
        figures.append(str(report.row("EOT-PGD, noise known", sigma).accuracy) if sigma else "")
        (line,) = (line for line in README.splitlines() if line.startswith(f"| {name} "))
        assert [part.strip() for part in line.split("|")[2:-1]] == figures


def test_pipeline_knows_a_ship_at_every_sigma(folder, model):
    options = [{"sigma": sigma, "num_samples": 8, "seed": 0} for sigma in (None, 0, 25, 50, 75, 100)]
    pipe = pipeline("image-classification", model=str(folder))
    for option in options if has_defense(model) else [{}]:
        assert pipe(picture("ship"), top_k=1, **option)[0]["label"] == "ship"
        assert pipe(picture("airplane"), top_k=1, **option)[0]["label"] == "airplane"


def test_a_ship_can_be_certified(folder, model):
    if not has_defense(model):
        pytest.skip("a baseline, which has no certificates")
    pipe = pipeline("image-classification", model=str(folder), certify=True, sigma=63.75, n=200, seed=0)
    answer = pipe(picture("ship"))[0]
    assert answer["label"] == "ship"
    assert answer["radius"] > 0.12


def test_without_the_defense_an_attack_turns_the_ship_into_something_else(folder):
    """And what was found is within eps: the weights are of a network that has something to defend."""
    if is_adversarial(folder):
        pytest.skip("trained to withstand attacks without the defense as well")
    pipe = pipeline("image-classification", model=str(folder))
    pixels = pipe.image_processor(picture("ship"), do_normalize=False, return_tensors="pt")["pixel_values"]
    labels = torch.tensor([pipe.model.config.label2id["ship"]])
    attack = make_attack("eot_pgd", steps=20, num_draws=1, restarts=1)
    options = {"sigma": None} if has_defense(pipe.model) else {}
    classifier = PixelClassifier(pipe.model, **options)
    adversarial = attack(classifier, pixels, labels, norm="Linf", eps=16 / 255, seeds=[0])
    assert (adversarial - pixels).abs().max() <= 16 / 255 + 1e-6
    assert classifier(adversarial).argmax(-1) != labels


def test_accuracy_on_the_card_is_from_training_images_that_were_held_out(folder):
    for training in results_of(folder):
        if "task" not in training:
            continue
        assert training["arguments"]["validation_split_name"] is None
        assert training["arguments"]["train_val_split"] > 0
        assert training["num_eval_images"] == 2000
