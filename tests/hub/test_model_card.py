# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import ast
import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fake_reports
import pytest
import yaml
from conftest import tiny_config
from huggingface_hub import ModelCard, parse_eval_result_entries

from transformers_nim import NIMImageProcessor
from transformers_nim.commands.cards import main
from transformers_nim.hub import card_differences, card_files, read_evaluation, write_card
from transformers_nim.hub.remote_code import remote_code_files
from transformers_nim.robustness import render
from transformers_nim.utils.text_table import render_table


MODEL_CARDS = sorted(path.parent for path in (Path(__file__).parents[2] / "model_cards").glob("*/card.json"))


def checkpoint(folder, architecture="NIMForRobustImageClassification", **overrides) -> Path:
    """A folder that has all of a checkpoint but its weights."""
    folder.mkdir(exist_ok=True)
    config = tiny_config(architectures=[architecture], **overrides)
    config.save_pretrained(folder)
    NIMImageProcessor.from_config(config).save_pretrained(folder)
    return folder


def save(folder, name, content) -> None:
    (folder / name).write_text(json.dumps(content))


def write_training_card(folder, name, results, summary) -> Path:
    architecture = "NIMForPreTraining" if results["task"] == "pretraining" else "NIMForImageClassification"
    checkpoint(folder, architecture)
    save(folder, "all_results.json", results)
    return write_card(folder, name=name, summary=summary, results=["all_results.json"])


CURVE = {
    "sigma": 63.75,
    "sigma_01": 0.25,
    "radii": [0.5],
    "certified_accuracy": [0.415],
    "certified_accuracy_low": [0.33],
    "certified_accuracy_high": [0.5025],
    "abstained": 0.125,
    "average_certified_radius": 0.3,
    "mean_num_draws": 1100,
}
SETTINGS = {"dataset": "digits", "split": "test", "n0": 100, "n": 1000, "alpha": 0.001, "sequential": False}
CERTIFIED = {"protocol": "Certified somehow.", "settings": SETTINGS, "curves": [CURVE]}


def test_table_is_aligned_markdown():
    table = render_table(["model", "clean", "attacked"], [["a", "99.0", "1.5"], ["longer name", "98.5", "40.0"]])
    assert table.splitlines() == [
        "| model       | clean | attacked |",
        "| ----------- | ----: | -------: |",
        "| a           |  99.0 |      1.5 |",
        "| longer name |  98.5 |     40.0 |",
    ]


def test_card_holds_the_results(tmp_path):
    checkpoint(tmp_path, defense_sigma=50)
    save(tmp_path, "results.json", CERTIFIED)
    path = write_card(tmp_path, name="nim-digits", summary="A model.", results=["results.json"], limits=["Much."])
    card = ModelCard.load(path)
    (result,) = card.data.eval_results
    # Shares in the metadata, percent in the table.
    assert result.metric_value == 0.415
    assert result.metric_args == {
        "norm": "L2",
        "radius": 0.5,
        "sigma": 63.75,
        "low": 0.33,
        "high": 0.5025,
        "n0": 100,
        "n": 1000,
        "alpha": 0.001,
        "sequential": False,
    }
    assert card.data.pipeline_tag == "image-classification"
    assert "adversarial-robustness" in card.data.tags
    for text in (
        "| radius 0.5               |  41.5 [33.0, 50.2] |",
        "Certified somehow.",
        "A model.",
        "Much.",
        "sigma=50",
        "arxiv.org/abs/2302.01056",
        "@inproceed",
    ):
        assert text in card.text
    assert not (tmp_path / ".eval_results").exists(), "the data are not said to be on the Hub"


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
    "arguments": {"output_dir": "somebody", "train_on": "clean", "adversarial_steps": 0},
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
    assert table == (
        {
            "accuracy_off": "91.2 [88.8, 93.8]",
            "accuracy_sigma_2.5": "62.5 [58.0, 67.0]",
            "loss_off": "1.25",
            "loss_sigma_2.5": "1.5",
        }
        if is_classifier
        else {"loss": "0.01235", "psnr_sigma_25": "27.12", "psnr_noisy_sigma_25": "20.5"}
    )
    script = "transformers-nim finetune" if is_classifier else "transformers-nim pretrain"
    text = " ".join(card.text.split())
    for part in (
        "# me/nim-blocks",
        "What it is.",
        "Measured on 500 validation images of blocks: a data set.",
        f"Trained on blocks: a data set for 12,500 updates of 1024 images by `{script}` of transformers-nim 1.2.3",
        "## Intended use",
        "arxiv.org/abs/2302.01056",
    ):
        assert part in text, part
    # Units of what is there, and not of what is not.
    assert "units of 0..255 pixels" in text
    assert ("in dB" in text) == (not is_classifier)
    assert ("95 % interval" in text) == is_classifier
    assert "output_dir" not in str(card)


def test_training_card_claims_no_robustness(tmp_path):
    for results, words in ((TRAINED, "They say nothing about robustness"), (PRETRAINED, "nothing is known of its")):
        card = ModelCard.load(write_training_card(tmp_path, "nim", results, "A model."))
        limits = card.text.split("## Limits")[1].split("##")[0]
        assert words in limits
        evaluation = card.text.split("## Evaluation")[1].split("\n## ")[0]
        assert "robust" not in evaluation.lower()
        assert "adversarial-robustness" not in card.data.tags


def test_a_classifier_and_what_it_was_made_of(tmp_path):
    """What the results of pretraining say of a denoiser is not said of the classifier."""
    checkpoint(tmp_path)
    save(tmp_path, "all_results.json", {**TRAINED, "arguments": {"train_on": "denoised"}})
    (tmp_path / "before").mkdir()
    save(tmp_path / "before", "all_results.json", {**PRETRAINED, "steps": 70})
    results = ["all_results.json", "before/all_results.json"]
    card = ModelCard.load(write_card(tmp_path, name="nim", summary="A model.", results=results))
    text = " ".join(card.text.split())
    assert text.index("### While fine-tuning") < text.index("### While pretraining")
    assert "12,500 updates of 1024 images by `transformers-nim finetune`" in text
    assert (
        "Before that, trained on blocks: a data set for 70 updates of 1024 images by `transformers-nim pretrain`"
        in text
    )
    assert "all arguments are in `before/all_results.json`" in text
    assert "They say nothing about robustness" in text
    assert "No classifier" not in text
    reordered = ModelCard.load(write_card(tmp_path, name="nim", summary="A model.", results=results[::-1]))
    assert reordered.text.split("## Training")[1] == card.text.split("## Training")[1]


def test_training_on_attacked_images_is_said(tmp_path):
    checkpoint(tmp_path)
    arguments = {"train_on": "denoised", "adversarial_steps": 1, "adversarial_eps": 8.0}
    save(tmp_path, "all_results.json", {**TRAINED, "arguments": arguments})
    text = " ".join(
        write_card(tmp_path, name="nim", summary="A model.", results=["all_results.json"]).read_text().split()
    )
    assert (
        "12,500 updates of 1024 attacked images (PGD of 1 step, Linf, eps 8/255) by `transformers-nim finetune`"
        in text
    )


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "PGD of 1 step, Linf, eps 8/255, under the noise that is trained on"),
        ({"adversarial_noise": "independent"}, "PGD of 1 step, Linf, eps 8/255, under noise of its own"),
        ({"adversarial_norm": "L2"}, "PGD of 1 step, L2, eps 8/255, under the noise that is trained on"),
        ({"adversarial_through": "classifier"}, "PGD of 1 step, Linf, eps 8/255)"),
    ],
)
def test_what_the_attack_of_training_saw(tmp_path, changed, expected):
    arguments = {
        "train_on": "denoised", "adversarial_steps": 1, "adversarial_eps": 8.0, "adversarial_norm": "Linf",
        "adversarial_noise": "shared", "adversarial_through": "defense",
    }  # fmt: skip
    checkpoint(tmp_path)
    save(tmp_path, "all_results.json", {**TRAINED, "arguments": {**arguments, **changed}})
    text = write_card(tmp_path, name="nim", summary="A model.", results=["all_results.json"]).read_text()
    assert f"attacked images ({expected}" in " ".join(text.split())


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
    assert "accuracy" not in str(card).split("## Limits")[0]


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


@pytest.mark.parametrize("folder", MODEL_CARDS, ids=lambda path: path.name)
def test_shipped_cards_are_as_generated(folder):
    assert card_differences(folder) == ""
    card = ModelCard.load(folder / "README.md")
    assert card.data.model_name == folder.name
    assert card.data.eval_results


def test_check_finds_changes(tmp_path, capsys):
    folder = checkpoint(tmp_path)
    save(folder, "results.json", CERTIFIED)
    write_card(folder, name="x", summary="A model.", results=["results.json"], hub_dataset="me/digits")
    assert main([str(folder), "--check"]) == 0
    for name, old, new in (("README.md", "Citation", "Citations"), (".eval_results/results.yaml", "0.415", "0.615")):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
        assert main([str(folder), "--check"]) == 1
        shown = capsys.readouterr().out
        assert f"--- {name} (there)" in shown
        assert f"-{'## ' if name == 'README.md' else '  value: '}{new}" in shown
        assert (folder / name).read_text() == text.replace(old, new), "a check writes nothing"
        assert main([str(folder)]) == 0
        assert (folder / name).read_text() == text
    (folder / "README.md").unlink()
    assert main([str(folder), "--check"]) == 1


def test_command_line_without_inputs(tmp_path):
    command = [sys.executable, "-m", "transformers_nim.commands.cards", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "has no card.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_inputs(tmp_path):
    checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"may have .*'summary'.*unknown: \['titel'\]"):
        write_card(tmp_path, name="x", summary="A model.", titel="y")
    (tmp_path / "card.json").unlink()
    with pytest.raises(ValueError, match=r"results\.json is missing"):
        write_card(tmp_path, name="x", summary="A model.", results=["results.json"])
    save(tmp_path, "results.json", {"something": 1})
    with pytest.raises(ValueError, match=r"has the fields \['something'\], which are of no known kind"):
        write_card(tmp_path)


def test_figures_of_approximate_attacks_say_so(tmp_path):
    checkpoint(tmp_path)
    report = fake_reports.simulated(attack_precision="bf16")
    save(tmp_path, "robustness.json", report.to_dict())
    card = ModelCard.load(
        write_card(tmp_path, name="me/nim", summary="A model.", results=["robustness.json"],
                   hub_dataset={"robustness.json": "me/digits"})
    )  # fmt: skip
    told = {result.metric_name: result.metric_args.get("attack_precision") for result in card.data.eval_results}
    for name in ("accuracy, EOT-PGD", "accuracy, strongest"):
        assert told[name] == "bf16"
    # Rounding could stop attacks on what is not random, which search in float32.
    for name in ("accuracy, clean", "accuracy, EOT-PGD, noise known"):
        assert told[name] is None
    assert "search in bf16 (autocast)" in " ".join(card.text.split())


def test_a_vote_is_told_with_every_figure(tmp_path):
    checkpoint(tmp_path)
    report = fake_reports.simulated(num_samples=16, vote="mean")
    save(tmp_path, "robustness.json", report.to_dict())
    card = ModelCard.load(
        write_card(tmp_path, name="me/nim", summary="A model.", results=["robustness.json"],
                   hub_dataset={"robustness.json": "me/digits"})
    )  # fmt: skip
    told = [(result.metric_args["num_samples"], result.metric_args["vote"]) for result in card.data.eval_results]
    assert set(told) == {(16, "mean")}
    assert "combines 16 noise draws" in " ".join(card.text.split())


def test_certificates_and_robustness_plug_in(tmp_path):
    checkpoint(tmp_path)
    save(tmp_path, "certify.json", CERTIFIED)
    report = fake_reports.simulated()
    save(tmp_path, "robustness.json", report.to_dict())
    inputs = {
        "results": ["certify.json", "robustness.json"],
        "hub_dataset": {"certify.json": "me/pictures", "robustness.json": "me/digits"},
    }
    card = ModelCard.load(write_card(tmp_path, name="me/nim", summary="A model.", **inputs))
    found = {result.metric_name: result for result in card.data.eval_results}
    radius = found["certified accuracy, sigma 63.75, radius 0.5"]
    assert (radius.metric_type, radius.metric_value, radius.dataset_type) == (
        "certified_accuracy",
        0.415,
        "me/pictures",
    )
    row = report.row("EOT-PGD", 50.0)
    assert found["majority of 11, EOT-PGD"].metric_value == row.majority_of_11.mean
    accuracy = found["accuracy, EOT-PGD"]
    assert accuracy.metric_value == row.accuracy.mean
    # What the cell really did, not what the whole evaluation was asked for.
    assert accuracy.metric_args == {
        "norm": "Linf",
        "eps_255": 8.0,
        "sigma": 50.0,
        "seed": 0,
        "attack_sigma": 50.0,
        "num_images": 40,
        "steps": 20,
        "num_draws": 8,
        "restarts": 1,
        "low": row.accuracy.low,
        "high": row.accuracy.high,
    }
    strongest = report.strongest(50.0).row
    assert found["worst of 10, strongest"].metric_value == strongest.worst_of_10.mean
    assert "attack_sigma" not in found["worst of 10, strongest"].metric_args
    text = " ".join(card.text.split())
    assert "| radius 0.5 | 41.5 [33.0, 50.2] |" in text
    assert " ".join(render(report).replace("### ", "#### ").split()) in text
    assert "**Unreliable**: of the sanity checks of the attacks, these failed: monotone." in text
    entries = parse_eval_result_entries(yaml.safe_load((tmp_path / ".eval_results/robustness.yaml").read_text()))
    (entry,) = [entry for entry in entries if entry.notes.startswith("accuracy, EOT-PGD;")]
    assert (entry.dataset_id, entry.task_id, entry.value) == ("me/digits", "accuracy", row.accuracy.mean)
    assert "eps_255=8.0" in entry.notes
    assert "num_draws=8" in entry.notes
    assert (tmp_path / ".eval_results/certify.yaml").is_file()
    assert {entry.dataset_id for entry in entries} == {"me/digits"}
    assert card.data.datasets is None, "data of measurements are not those of training"
    assert card_differences(tmp_path) == ""


def test_metadata_leaves_checks_out():
    report = fake_reports.simulated(sigmas=[None, 25.0], eps_grid=(4.0, 16.0))
    found = {figure.name: figure for figure in read_evaluation(report.to_dict()).figures}
    attacks = ["uniform noise", "FGSM", "PGD-10, one draw", "EOT-APGD-CE", "EOT-APGD-DLR", "EOT-PGD, noise known"]
    attacks += ["BPDA", "patch statistics", "vote", "low frequency", "Square", "EOT-PGD, eps 4", "EOT-PGD, eps 16"]
    expected = {f"accuracy, {name}": (name, "accuracy") for name in ["clean", *attacks]}
    for name in ("EOT-PGD", "strongest"):
        for kind in ("accuracy", "worst_of_10", "majority_of_11"):
            expected[f"{kind.replace('_', ' ')}, {name}"] = (name, kind)
    assert found.keys() == expected.keys()
    for figure, (name, kind) in expected.items():
        row = report.strongest(50.0).row if name == "strongest" else report.row(name, 50.0)
        assert found[figure].value == getattr(row, kind).mean
    assert found["accuracy, clean"].arguments["eps_255"] == 0
    assert "attack_sigma" not in found["accuracy, clean"].arguments
    assert found["accuracy, EOT-PGD, eps 4"].arguments["eps_255"] == 4
    # They were measured, and stay in the tables.
    assert {"EOT-PGD, unbounded", "EOT-PGD, sigma 25", "clean, noise known"} <= set(report.configurations)


def test_one_data_set_on_the_hub_for_results_of_one(tmp_path):
    checkpoint(tmp_path)
    names = ["results.json", "later/results.json"]
    (tmp_path / "later").mkdir()
    save(tmp_path, names[0], CERTIFIED)
    save(tmp_path, names[1], {**CERTIFIED, "curves": [{**CURVE, "certified_accuracy": [0.125]}]})
    inputs = {"name": "x", "summary": "A model.", "results": names}
    card = ModelCard.load(write_card(tmp_path, **inputs, hub_dataset="me/digits", training_dataset="me/learned"))
    assert card.data.datasets == ["me/learned"]
    assert {result.dataset_type for result in card.data.eval_results} == {"me/digits"}
    for file, value in (("results.yaml", 0.415), ("later-results.yaml", 0.125)):
        (entry,) = parse_eval_result_entries(yaml.safe_load((tmp_path / ".eval_results" / file).read_text()))
        assert (entry.dataset_id, entry.value) == ("me/digits", value)
    # One of the two is of other data.
    save(tmp_path, names[1], {**CERTIFIED, "settings": {**SETTINGS, "dataset": "letters"}})
    with pytest.raises(ValueError, match=r"'results.json': 'digits', 'later/results.json': 'letters'"):
        card_files(tmp_path)
    card = ModelCard.load(write_card(tmp_path, hub_dataset={"later/results.json": "me/letters"}))
    assert {(result.dataset_name, result.dataset_type) for result in card.data.eval_results} == {
        ("digits", "digits"),
        ("letters", "me/letters"),
    }
    assert set(card_files(tmp_path)) == {"README.md", ".eval_results/later-results.yaml"}
    with pytest.raises(
        ValueError, match=r"hub_dataset has \['other.json'\].*\['results.json', 'later/results.json'\]"
    ):
        write_card(tmp_path, hub_dataset={"other.json": "me/letters"})


def test_result_files_that_would_overwrite_each_other(tmp_path):
    checkpoint(tmp_path)
    names = ["a/b.json", "a-b.json"]
    (tmp_path / "a").mkdir()
    for name in names:
        save(tmp_path, name, CERTIFIED)
    with pytest.raises(ValueError, match=r"would be written to \.eval_results/a-b\.yaml, a-b\.json is one"):
        write_card(tmp_path, name="x", summary="A model.", results=names, hub_dataset="me/digits")


def test_failed_checks_are_told():
    report = fake_reports.simulated()
    assert read_evaluation(report.to_dict()).limits
    passed = replace(report, checks=[check for check in report.checks if check["passed"] is not False])
    assert read_evaluation(passed.to_dict()).limits == []


def test_a_card_tells_of_the_code_beside_it(tmp_path):
    checkpoint(tmp_path)
    assert "trust_remote_code" not in write_card(tmp_path, name="x", summary="A model.").read_text()
    for name, text in remote_code_files(tmp_path).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert card_differences(tmp_path)
    assert "trust_remote_code=True" in write_card(tmp_path).read_text()


@pytest.mark.parametrize(("leaks", "bypass"), [(True, True), (False, False)])
def test_the_authors_setting_is_named_as_a_limit(tmp_path, leaks, bypass):
    checkpoint(tmp_path, norm_pix_loss=leaks, patch_statistics="input")
    assert ("bypass the noise" in write_card(tmp_path, name="x", summary="A model.").read_text()) == bypass


def test_cost_counts_the_draws(tmp_path):
    checkpoint(tmp_path, num_samples=8)
    assert "8 noise draws" in (text := write_card(tmp_path, name="x", summary="A model.").read_text())
    assert "16 forward passes" in text


CONVNEXT = {
    "classifier_config": {
        "model_type": "convnext",
        "architectures": ["ConvNextForImageClassification"],
        "depths": [1, 1],
        "hidden_sizes": [8, 16],
        "num_stages": 2,
    },
    "classifier_input": {
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": [32, 32],
        "resample": "bilinear",
        "bgr": False,
    },
}


def test_a_classifier_from_elsewhere_needs_a_license(tmp_path):
    checkpoint(tmp_path, **CONVNEXT)
    with pytest.raises(ValueError, match=r"made elsewhere \(convnext\).*write_card\(folder, license=\.\.\.\)"):
        write_card(tmp_path, name="x", summary="A model.")
    card = ModelCard.load(write_card(tmp_path, license="mit", base_model="them/convnext"))
    assert (card.data.license, card.data.base_model) == ("mit", "them/convnext")
    parts = {part.split("\n")[0]: " ".join(part.split()) for part in card.text.split("\n## ")}
    assert "The classifier behind it is a `convnext` that was made elsewhere." in parts["Use"]
    assert "is given as `mit`. Made from: `them/convnext`." in parts["Use"]
    assert "one through the classifier (convnext): 2 forward passes" in parts["Cost"]


def test_a_license_of_ones_own(tmp_path):
    checkpoint(tmp_path)
    card = ModelCard.load(write_card(tmp_path, name="x", summary="A model."))
    assert (card.data.license, card.data.base_model) == ("apache-2.0", None)
    assert "made elsewhere" not in card.text
    assert ModelCard.load(write_card(tmp_path, license="cc-by-nc-4.0")).data.license == "cc-by-nc-4.0"


def sections_of(path) -> dict[str, str]:
    """Sections of a card by heading, with spaces in place of line breaks."""
    return {part.split("\n")[0]: " ".join(part.split()) for part in ModelCard.load(path).text.split("\n## ")}


@pytest.mark.parametrize(
    ("arguments", "limit", "intended"),
    [
        (
            {"train_on": "clean", "adversarial_steps": 0},
            "- No defense: small perturbations change its answers.",
            "A baseline for research on adversarial defenses: it has none itself.",
        ),
        (
            {"train_on": "noisy", "adversarial_steps": 0},
            "- No denoiser, and no noise when it predicts: training on noisy images makes a classifier used to noise.",
            "trained on noisy images, without a denoiser.",
        ),
        (
            {"train_on": "clean", "adversarial_steps": 7, "adversarial_eps": 4.0},
            "training on attacked images (PGD of 7 steps, Linf, eps 4/255).",
            "trained on attacked images, without a denoiser.",
        ),
        (
            {"train_on": "noisy", "adversarial_steps": 7, "adversarial_eps": 4.0},
            "training on attacked images (PGD of 7 steps, Linf, eps 4/255, on images with noise).",
            "trained on attacked images, without a denoiser.",
        ),
        (
            {},
            "- No denoiser. Unless its training has hardened it, small perturbations change its answers.",
            "a classifier without a denoiser.",
        ),
    ],
)
def test_undefended_models_by_what_they_were_trained_on(tmp_path, arguments, limit, intended):
    results = {**TRAINED, "arguments": arguments}
    sections = sections_of(write_training_card(tmp_path, "x", results, "A model."))
    assert limit in sections["Limits"]
    assert intended in sections["Intended use"]
    others = ("No defense:", "no noise when", "attacked images", "Unless its training")
    assert sum(other in sections["Limits"] for other in others) == 1
    assert sections["Cost"].endswith("A prediction takes 1 forward pass.")


def test_a_defense_that_is_off_is_said_to_be(tmp_path):
    checkpoint(tmp_path, defense_sigma=None, num_samples=4)
    sections = sections_of(write_card(tmp_path, name="x", summary="A model."))
    assert "A prediction takes 1 forward pass, through the classifier, until a `sigma` is given." in sections["Cost"]
    assert "(4, if no other `num_samples` is given)" in sections["Cost"]
    assert 'model="x")' in sections["Use"]
    assert "the defense is off, and the bare classifier answers, until one is given" in sections["Use"]
    checkpoint(tmp_path, defense_sigma=0, num_samples=4)
    sections = sections_of(write_card(tmp_path))
    assert sections["Cost"].endswith(": 2 forward passes. No noise is drawn.")
    checkpoint(tmp_path, defense_sigma={"type": "uniform", "low": 5, "high": 30})
    sections = sections_of(write_card(tmp_path))
    assert "takes 1 noise draw, that is a forward pass through the denoiser" in sections["Cost"]
    assert 'model="x", sigma="config")' in sections["Use"]
    assert "defense is off" not in sections["Use"]


def test_a_defense_without_a_denoiser_is_said_to_be_one(tmp_path):
    checkpoint(tmp_path, denoise=False, num_samples=4)
    sections = sections_of(write_card(tmp_path, name="x", summary="A model."))
    assert "There is no denoiser." in sections["Use"]
    assert "without a denoiser" in sections["Intended use"]
    assert "takes 4 noise draws, each a forward pass through the classifier: 4 forward passes." in sections["Cost"]
    checkpoint(tmp_path, denoise=False)
    sections = sections_of(write_card(tmp_path))
    assert "1 noise draw, that is a forward pass through the classifier: 1 forward pass." in sections["Cost"]
    assert not any("denoises" in text for text in sections.values())


def test_a_card_speaks_of_measured_perturbations_only_if_some_were(tmp_path):
    checkpoint(tmp_path)
    sections = sections_of(write_card(tmp_path, name="x", summary="A model."))
    assert "How well it withstands them has not been measured yet." in sections["Intended use"]
    assert "listed under Evaluation" not in sections["Intended use"]
    # It may well have been trained.
    assert "Nothing is claimed: nothing was measured." in sections["Limits"]
    save(tmp_path, "results.json", CERTIFIED)
    sections = sections_of(write_card(tmp_path, results=["results.json"]))
    assert "within the kinds and sizes of perturbations that are listed under Evaluation." in sections["Intended use"]
    assert "not been measured" not in sections["Intended use"]


def _without(content, way):
    content = copy.deepcopy(content)
    inside = content
    for key in way[:-1]:
        inside = inside[key]
    del inside[way[-1]]
    return content


def test_incomplete_results_are_named(tmp_path):
    """Every field that a card needs is either not needed or missed by name; nothing else is raised."""
    report = fake_reports.simulated(sigmas=(None,), eps_grid=()).to_dict()
    ways = {
        "trained": (
            TRAINED,
            ["dataset", "steps", "total_batch_size", "num_eval_images", "best", "arguments", "versions"],
        ),
        "certified": (
            CERTIFIED,
            [
                *(("curves", 0, key) for key in CURVE if key != "sigma_01"),
                *(("settings", key) for key in CERTIFIED["settings"]),
            ],
        ),
        "evaluated": (
            report,
            [("settings", key) for key in ("dataset", "eps", "sigma", "split", "seed")]
            + [("cells", 0, "name"), ("records", 0, "row"), ("records", 0, "predictions"), ("images", 0, "label")],
        ),
    }
    for name, (content, missing) in ways.items():
        folder = checkpoint(tmp_path / name, "NIMForImageClassification")
        save(folder, "found.json", content)
        write_card(folder, name="x", summary="A model.", results=["found.json"])
        for way in missing:
            way = (way,) if isinstance(way, str) else way
            save(folder, "found.json", _without(content, way))
            with pytest.raises(ValueError, match=rf"found\.json.*'{way[-1]}'"):
                card_files(folder)


def test_a_missing_field_is_named_with_the_way_to_it(tmp_path):
    results = {**TRAINED, "versions": {"torch": "2"}}
    with pytest.raises(
        ValueError, match=r"all_results\.json: versions has no field 'transformers_nim', only \['torch'\]"
    ):
        write_training_card(tmp_path, "x", results, "A model.")
    with pytest.raises(ValueError, match=r"all_results\.json: task must be one of .*, got 'sleeping'"):
        write_training_card(tmp_path, "x", {**TRAINED, "task": "sleeping"}, "A model.")


def test_files_of_the_wrong_kind(tmp_path):
    checkpoint(tmp_path)
    for content, message in (
        (["x"], r"card\.json must hold a mapping of fields, but holds a list: \['x'\]"),
        ({"name": "x", "summary": "A model.", "results": "results.json"}, r"card\.json: results must be a list of"),
    ):
        save(tmp_path, "card.json", content)
        with pytest.raises(ValueError, match=message):
            card_files(tmp_path)
    with pytest.raises(ValueError, match="results must be a list of"):
        main([str(tmp_path)])
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(ValueError, match=r"card\.json is no JSON: "):
        write_card(tmp_path, name="x")
    (tmp_path / "card.json").unlink()
    save(tmp_path, "results.json", 3)
    with pytest.raises(ValueError, match=r"results\.json must hold a mapping of fields, but holds a int: 3"):
        write_card(tmp_path, name="x", summary="A model.", results=["results.json"])
    save(tmp_path, "results.json", {**CERTIFIED, "curves": [3]})
    with pytest.raises(ValueError, match=r"results\.json cannot be read, a field is of the wrong kind"):
        card_files(tmp_path)
