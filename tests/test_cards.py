# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import ast
import copy

import pytest
from huggingface_hub import ModelCard

from transformers_nim.cards import render_table, write_model_card, write_training_card


RESULTS = {
    "protocol": "Measured somehow.",
    "rows": [
        {
            "model": "De^3, sigma 50",
            "sigma": 50,
            "attack": "EOT-PGD",
            "mean": 41.5,
            "low": 33.0,
            "high": 50.25,
            "settings": {"norm": "Linf", "eps_255": 8, "steps": 40, "num_draws": 10},
        }
    ],
}


def test_table_is_aligned_markdown():
    table = render_table(["model", "clean", "attacked"], [["a", "99.0", "1.5"], ["longer name", "98.5", "40.0"]])
    assert table.splitlines() == [
        "| model       | clean | attacked |",
        "| ----------- | ----: | -------: |",
        "| a           |  99.0 |      1.5 |",
        "| longer name |  98.5 |     40.0 |",
    ]


def test_card_holds_the_results(tmp_path):
    table = render_table(["model", "EOT-PGD"], [["De^3, sigma 50", "41.5"]])
    path = write_model_card(tmp_path, "nim-digits", RESULTS, table, "A model.", "Much.", "digits", sigma=50)
    card = ModelCard.load(path)
    (result,) = card.data.eval_results
    assert result.metric_value == 41.5
    assert result.metric_args == {
        "sigma": 50,
        "low": 33.0,
        "high": 50.25,
        "norm": "Linf",
        "eps_255": 8,
        "steps": 40,
        "num_draws": 10,
    }
    assert card.data.pipeline_tag == "image-classification"
    for text in (table, "Measured somehow.", "A model.", "Much.", "sigma=50", "arxiv.org/abs/2302.01056"):
        assert text in card.text


TRAINED = {
    "task": "finetuning",
    "dataset": "blocks: a data set",
    "steps": 12500,
    "total_batch_size": 1024,
    "num_eval_images": 500,
    "validation_split": "validation",
    "best": {"step": 1000},
    "metrics": {
        "loss_off": 1.25,
        "loss_sigma_2.5": 1.5,
        "accuracy_off": 0.9125,
        "accuracy_off_low": 0.8875,
        "accuracy_off_high": 0.9375,
        "accuracy_sigma_2.5": 0.625,
        "accuracy_sigma_2.5_low": 0.58,
        "accuracy_sigma_2.5_high": 0.67,
    },
    "arguments": {"token": "hf_not_for_anybody", "output_dir": "/home/somebody/outputs"},
    "versions": {"transformers_nim": "1.2.3"},
}
PRETRAINED = {
    **TRAINED,
    "task": "pretraining",
    "metrics": {"loss": 0.0123456, "psnr_sigma_25": 27.125, "psnr_noisy_sigma_25": 20.5},
}


@pytest.mark.parametrize("results", [TRAINED, PRETRAINED])
def test_training_card_reads_back(tmp_path, results):
    before = copy.deepcopy(results)
    path = write_training_card(tmp_path, "me/nim-blocks", results, "What it is.")
    assert results == before
    assert path == tmp_path / "README.md"
    card = ModelCard.load(path)
    is_classifier = results["task"] == "finetuning"
    assert card.data.pipeline_tag == ("image-classification" if is_classifier else "image-feature-extraction")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    # Written once more, it says the same.
    ModelCard(str(card)).save(tmp_path / "again.md")
    assert ModelCard.load(tmp_path / "again.md").data.to_dict() == card.data.to_dict()

    rows = [line.strip("| ").split("|") for line in card.text.splitlines() if line.startswith("|")]
    table = {name.strip(): value.strip() for name, value in rows[2:]}
    assert table == {name: f"{value:.4g}" for name, value in results["metrics"].items()}
    script = "examples/finetune.py" if is_classifier else "examples/pretrain.py"
    text = " ".join(card.text.split())
    for part in (
        "# me/nim-blocks",
        "What it is.",
        "Measured on 500 validation images of blocks: a data set.",
        f"Trained on blocks: a data set for 12,500 updates of 1024 images by `{script}` of transformers-nim 1.2.3",
        "arxiv.org/abs/2302.01056",
    ):
        assert part in text, part
    # Units of what is there, and not of what is not.
    assert "units of 0..255 pixels" in text
    assert ("in dB" in text) == (not is_classifier)
    assert ("95 % interval" in text) == is_classifier
    for secret in ("hf_not_for_anybody", "somebody"):
        assert secret not in str(card)


def test_training_card_claims_no_robustness(tmp_path):
    for results, words in ((TRAINED, "They say nothing about robustness"), (PRETRAINED, "nothing is known of its")):
        card = ModelCard.load(write_training_card(tmp_path, "nim", results, "A model."))
        limits = card.text.split("## Limits")[1].split("##")[0]
        assert words in limits
        assert "robust" not in card.text.replace(limits, "").replace("NIMForRobustImageClassification", "").lower()
        assert "adversarial-robustness" not in card.data.tags


def test_training_card_holds_the_accuracies(tmp_path):
    card = ModelCard.load(write_training_card(tmp_path, "me/nim-blocks", TRAINED, "A model."))
    found = {
        result.metric_name: (result.metric_value, result.metric_args, result.dataset_name, result.dataset_split)
        for result in card.data.eval_results
    }
    where = ("blocks: a data set", "validation")
    assert found == {
        "accuracy without attack, off": (0.9125, {"low": 0.8875, "high": 0.9375}, *where),
        "accuracy without attack, sigma 2.5": (0.625, {"low": 0.58, "high": 0.67}, *where),
    }
    assert {result.metric_type for result in card.data.eval_results} == {"accuracy"}


def test_training_card_of_a_denoiser_has_no_accuracy(tmp_path):
    card = ModelCard.load(write_training_card(tmp_path, "nim", PRETRAINED, "A model."))
    assert not card.data.eval_results
    assert "accuracy" not in str(card)


def test_training_card_without_a_measurement(tmp_path):
    for results in (TRAINED, PRETRAINED):
        results = {**results, "metrics": {}, "num_eval_images": 0}
        card = ModelCard.load(write_training_card(tmp_path, "nim", results, "A model."))
        assert "Nothing was measured." in card.text
        assert "Measured on" not in card.text
        assert not card.data.eval_results


@pytest.mark.parametrize("results", [TRAINED, PRETRAINED])
def test_training_card_shows_code_that_loads_it(tmp_path, results):
    card = ModelCard.load(write_training_card(tmp_path, "me/nim-blocks", results, "A model."))
    (code,) = [block.split("```")[0] for block in card.text.split("```python\n")[1:]]
    strings = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert "me/nim-blocks" in strings


def test_a_card_says_what_was_chosen_on_test_images(tmp_path):
    text = write_training_card(tmp_path, "name", {**TRAINED, "validation_split": "test"}, "A model.").read_text()
    assert "Measured on 500 test images of blocks: a data set. The model in `best/` was chosen by them" in text
    assert "split: test" in text
    assert "chosen by them" not in write_training_card(tmp_path, "name", TRAINED, "A model.").read_text()


def test_a_masked_autoencoder_is_not_shown_as_a_denoiser(tmp_path):
    results = {**PRETRAINED, "arguments": {"pretext": "mae"}}
    assert "denoiser =" not in write_training_card(tmp_path, "name", results, "A model.").read_text()
    assert "denoiser =" in write_training_card(tmp_path, "name", PRETRAINED, "A model.").read_text()
