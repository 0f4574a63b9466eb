# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The quickstart as a user runs it, and its flow on colour photographs."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import training_runs
from PIL import Image
from transformers import pipeline

from transformers_nim import NIMForPreTraining, NIMForRobustImageClassification
from transformers_nim.hub.publication import prepare
from transformers_nim.robustness import RobustnessReport
from transformers_nim.robustness.protocol import CLEAN, HEADLINE


datasets = pytest.importorskip("datasets")
SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart.py"
CIFAR = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10"
ROWS = ["undefended", "undefended, noise-augmented", "De^3, off", "De^3, sigma 0", "De^3, sigma 50"]


@pytest.fixture(scope="module")
def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_fast(output_dir, *options) -> str:
    """Run the quickstart with `--fast`; return what it printed."""
    command = [sys.executable, str(SCRIPT), "--fast", "--output_dir", str(output_dir), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=training_runs.environment(), timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def table_of(output: str) -> list[list[str]]:
    """Return the cells of the table that ends the output."""
    lines = [line for line in output.split("95 % intervals:")[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


@pytest.fixture(scope="module")
def fast_run(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("outputs") / "quickstart"
    return run_fast(output_dir), output_dir


def test_its_table_is_that_of_the_reports(fast_run):
    output, output_dir = fast_run
    heading, *rows = table_of(output)
    assert heading == ["accuracy in %", "no attack", "PGD", "EOT-PGD"]
    assert [row[0] for row in rows] == ROWS
    for name, *cells in rows:
        # PGD is measured at the sigma that the model is used with.
        measured = [cell for cell in cells if cell != "-"]
        assert len(measured) == (2 if name in ("De^3, off", "De^3, sigma 0") else 3)
        for cell in measured:
            mean, low, high = map(float, re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", cell).groups())
            assert 0 <= low <= mean <= high <= 100
    report = RobustnessReport.load(output_dir / "work" / "robustness-denoised")
    assert report.settings["eps"] == 48
    for row, sigma in zip(rows[2:], (None, 0, 50)):
        name = HEADLINE if sigma == 50 else f"{HEADLINE}, sigma {'off' if sigma is None else sigma}"
        for cell, configuration in ((row[1], CLEAN), (row[3], name)):
            assert float(cell.split()[0]) == pytest.approx(
                100 * report.correct(configuration, sigma).mean(), abs=0.051
            )


def test_it_leaves_everything_it_promises(fast_run):
    _, output_dir = fast_run
    card = (output_dir / "README.md").read_text()
    for kind in ("clean", "noisy", "denoised"):
        folder = output_dir / "work" / f"robustness-{kind}"
        report = (folder / "report.md").read_text()
        assert "### Sanity checks" in report
        for name in ("tradeoff.png", "eps_curve.png"):
            picture = np.asarray(Image.open(folder / name).convert("L"))
            assert picture.shape[0] > 300
            assert picture.std() > 10, "an empty plot"
    line = next(line for line in report.splitlines() if line.startswith(f"| {HEADLINE} "))
    assert line in card
    assert (output_dir / "robustness.json").read_bytes() == (folder / "results.json").read_bytes()
    # The data, the other models and the records are no part of what is published.
    publication = prepare(output_dir, "name/quickstart")
    assert publication.problems == []
    assert not any(name.startswith("work") for name in publication.files)


def test_the_commands_that_it_prints_are_those_of_the_scripts(fast_run):
    commands = re.findall(r"^\$ ((?:.*\\\n)*.*)", fast_run[0], re.MULTILINE)
    scripts = []
    for command in commands:
        python, script, *arguments = shlex.split(command.replace("\\\n", ""))
        assert python == "python"
        assert (SCRIPT.parents[1] / script).is_file()
        scripts.append(Path(script).stem)
        training_runs.load_script(scripts[-1]).parse_arguments(arguments)
    assert scripts == ["pretrain", *3 * ["finetune"], *3 * ["evaluate_robustness"]]


def test_the_readme_shows_its_table(quickstart):
    readme = (SCRIPT.parents[1] / "README.md").read_text().split("## What the numbers mean")[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in readme.splitlines() if line[:1] == "|"]
    sigmas = quickstart.WHOLE[-1].split("--sigmas ")[1].split()
    names = [f"De^3, {sigma}" if sigma == "off" else f"De^3, sigma {sigma}" for sigma in sigmas]
    assert rows[0] == ["accuracy in %", "no attack", "PGD", "EOT-PGD"]
    assert [row[0] for row in rows[2 : 2 + 2 + len(names)]] == [*quickstart.BASELINES.values(), *names]


def test_its_checkpoint_loads(fast_run):
    _, output_dir = fast_run
    pipe = pipeline("image-classification", model=str(output_dir), seed=0)
    assert type(pipe.model) is NIMForRobustImageClassification
    assert pipe.model.config.defense_sigma["value"] == 50
    pictures = datasets.load_from_disk(output_dir / "work" / "digits")["test"][:4]["image"]
    answers = pipe(pictures, top_k=10)
    assert {answer["label"] for answer in answers[0]} == {str(digit) for digit in range(10)}
    denoiser = NIMForPreTraining.from_pretrained(output_dir / "work" / "pretraining").state_dict()
    assert all(torch.equal(denoiser[name], tensor) for name, tensor in pipe.model.denoiser.state_dict().items())


@pytest.mark.slow
def test_it_repeats_itself(fast_run, tmp_path):
    output, output_dir = fast_run
    (output_dir / "mine.txt").write_text("kept")
    again = run_fast(output_dir)
    assert again == output
    assert (output_dir / "mine.txt").read_text() == "kept"
    other = run_fast(tmp_path, "--seed", "1", "--max_train_steps", "2", "--max_eval_samples", "4", "--eps", "8")
    assert "on 4 held-out digits, Linf 8/255" in other
    assert RobustnessReport.load(tmp_path / "robustness.json").settings["seed"] == 1
    assert '"steps": 2,' in (tmp_path / "all_results.json").read_text()


def test_a_folder_of_others_is_left_alone(quickstart, tmp_path):
    (tmp_path / "thesis.txt").write_text("the only copy")
    with pytest.raises(ValueError, match="holds files of something else"):
        quickstart.main(["--output_dir", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(SystemExit):
        quickstart.main(["--output_dir", str(tmp_path / "new"), "--eps", "0"])
    assert not (tmp_path / "new").exists()


def test_held_out_digits_are_not_trained_on(quickstart, tmp_path):
    quickstart.save_digits(tmp_path / "digits")
    data = datasets.load_from_disk(tmp_path / "digits")
    train, test = ([np.asarray(image) for image in data[part]["image"]] for part in ("train", "test"))
    assert (len(train), len(test)) == (1400, 397)
    assert {image.tobytes() for image in train}.isdisjoint(image.tobytes() for image in test)
    assert (train[0].shape, train[0].dtype, np.max(train)) == ((8, 8), np.uint8, 255)
    assert data["train"].features["label"].names == [str(digit) for digit in range(10)]


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.is_dir(), reason="the CIFAR-10 images are not here")
def test_the_same_flow_on_colour_photographs(tmp_path):
    """A few thousand CIFAR-10 images: it must learn to denoise and to classify better than chance, defended or not."""
    data = ["--dataset_name", CIFAR, "--cache_dir", tmp_path / "cache"]
    train = [*data, "--max_train_samples", 3000, "--max_eval_samples", 100, "--max_train_steps", 100,
             "--per_device_train_batch_size", 128, "--max_grad_norm", 1, "--horizontal_flip", 0, "--crop_scale", 1, 1,
             "--num_workers", 0, "--report_to", "none"]  # fmt: skip
    # Patches of 8 pixels instead of 4: a quarter of the time.
    size = "patch_size=8,num_hidden_layers=3,hidden_size=96,intermediate_size=384"
    training_runs.main(
        "pretrain", *train, "--config_name", "tiny-patch4-32", "--config_overrides", size, "--learning_rate", 4e-3,
        "--output_dir", tmp_path / "nim",
    )  # fmt: skip
    reports = {}
    for kind in ("clean", "denoised"):
        training_runs.main(
            "finetune", *train, "--model_name_or_path", tmp_path / "nim", "--train_on", kind, "--learning_rate", 2e-3,
            "--layer_decay", 1, "--auto_augment", "none", "--random_erasing", 0, "--mixup", 0, "--cutmix", 0,
            "--sigma_high", 100, "--output_dir", tmp_path / kind,
        )  # fmt: skip
        reports[kind] = training_runs.main(
            "evaluate_robustness", *data, "--model_name_or_path", tmp_path / kind, "--max_eval_samples", 100,
            "--steps", 5, "--num_draws", 4, "--num_queries", 8, "--num_check_images", 4, "--eps_grid", "--sigmas", 0,
            *(["--sigma", 0] if kind == "denoised" else []), "--output_dir", tmp_path / f"robustness-{kind}",
        )  # fmt: skip
    undefended, robust = reports["clean"].row(HEADLINE, None), reports["denoised"].row(HEADLINE, 0)
    assert undefended.clean.mean > 0.18, "chance is 0.1"
    assert robust.clean.mean > 0.18
    assert undefended.accuracy.mean < undefended.clean.mean
    model = NIMForRobustImageClassification.from_pretrained(tmp_path / "denoised")
    test = datasets.load_dataset(str(CIFAR), split="test[:100]", cache_dir=str(tmp_path / "cache")).with_format(
        "numpy"
    )
    pixels = torch.from_numpy(np.stack(test[next(name for name in test.features if "im" in name)]))
    pixel_values = (pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        outputs = model.denoiser(pixel_values, sigma=70)
    left = torch.nn.functional.mse_loss(outputs.denoised_pixel_values, pixel_values)
    assert left < 0.5 * torch.nn.functional.mse_loss(outputs.noisy_pixel_values, pixel_values)
