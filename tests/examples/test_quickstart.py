# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The quickstart as a user runs it, and its flow on colour photographs."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from transformers_nim import NIMConfig, NIMForPreTraining, NIMForRobustImageClassification


SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart.py"
CIFAR = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10"


@pytest.fixture(scope="module")
def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fast_run(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("quickstart")
    command = [sys.executable, str(SCRIPT), "--fast", "--output_dir", str(output_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done, output_dir


def test_it_leaves_everything_it_promises(fast_run):
    done, output_dir = fast_run
    results = json.loads((output_dir / "results.json").read_text())
    assert {row["model"] for row in results["rows"]} == {
        "undefended",
        "undefended, noise-augmented",
        "De^3, off",
        "De^3, sigma 0",
        "De^3, sigma 50",
    }
    # The table on the screen, the file and the card agree.
    card = (output_dir / "README.md").read_text()
    for row in results["rows"]:
        cell = f"{row['mean']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
        assert cell in done.stdout
        assert cell in card
        assert row["low"] <= row["mean"] <= row["high"]
    for name in ("tradeoff.png", "reconstructions.png"):
        picture = np.asarray(Image.open(output_dir / name).convert("L"))
        assert picture.shape[0] > 300
        assert picture.std() > 10, "an empty plot"
    assert "1/4 pretraining" in done.stderr
    assert "4/4 attacking" in done.stderr


def test_its_checkpoint_loads(fast_run, quickstart):
    _, output_dir = fast_run
    pipe = pipeline("image-classification", model=str(output_dir), seed=0)
    assert type(pipe.model) is NIMForRobustImageClassification
    pixels, _ = quickstart.load_digits()["test"]
    answers = pipe([Image.fromarray(image[0].numpy()) for image in pixels[:4]], top_k=10)
    assert {answer["label"] for answer in answers[0]} == {str(digit) for digit in range(10)}
    denoiser = NIMForPreTraining.from_pretrained(output_dir / "pretraining").state_dict()
    assert all(torch.equal(denoiser[name], tensor) for name, tensor in pipe.model.denoiser.state_dict().items())


def test_it_repeats_itself(fast_run, quickstart, tmp_path):
    _, output_dir = fast_run
    again = quickstart.main(["--fast", "--output_dir", str(tmp_path)])
    results = json.loads((output_dir / "results.json").read_text())
    assert json.loads(json.dumps(again["rows"])) == results["rows"]
    other = quickstart.main(["--fast", "--output_dir", str(tmp_path), "--seed", "1", "--max_train_steps", "2"])
    assert other["pretraining_steps"] == 2
    assert other["rows"] != again["rows"]


def test_held_out_digits_are_not_trained_on(quickstart):
    data = quickstart.load_digits()
    train, test = ({image.numpy().tobytes() for image in data[part][0]} for part in ("train", "test"))
    assert len(data["train"][0]) + len(data["test"][0]) == 1797
    assert len(train & test) == 0
    assert data["train"][0].dtype == torch.uint8
    assert data["train"][0].max() == 255


@pytest.mark.skipif(not CIFAR.is_dir(), reason="the CIFAR-10 images are not here")
def test_the_same_flow_on_colour_photographs(quickstart, tmp_path):
    """A few thousand CIFAR-10 images: it must learn to denoise and to classify better than chance, defended or not."""
    datasets = pytest.importorskip("datasets")
    parts = {}
    for part, split in (("train", "train[:3000]"), ("test", "test[:100]")):
        dataset = datasets.load_dataset(str(CIFAR), split=split, cache_dir=str(tmp_path / "cache")).with_format(
            "numpy"
        )
        image, label = (next(name for name in dataset.features if wanted in name) for wanted in ("im", "label"))
        pixels = torch.from_numpy(np.stack(dataset[image])).permute(0, 3, 1, 2)
        parts[part] = pixels, torch.from_numpy(np.asarray(dataset[label])).long()
    # Patches of 8 pixels instead of 4: a quarter of the time.
    config = NIMConfig.from_size(
        "tiny-patch4-32", patch_size=8, num_hidden_layers=3, hidden_size=96, intermediate_size=384, num_labels=10
    )
    results = quickstart.run(
        parts,
        config,
        tmp_path,
        "CIFAR-10",
        eps=8,
        sigmas=(0, 70),
        pretraining_steps=100,
        finetuning_steps=100,
        attack_steps=5,
        eot_draws=4,
        num_test_images=100,
    )
    accuracy = {(row["model"], row["attack"]): row["mean"] for row in results["rows"]}
    assert accuracy["undefended", "no attack"] > 18, "chance is 10"
    assert accuracy["De^3, sigma 0", "no attack"] > 18
    assert accuracy["undefended", "EOT-PGD"] < accuracy["undefended", "no attack"]
    model = NIMForRobustImageClassification.from_pretrained(tmp_path)
    pixel_values = (parts["test"][0] / 255 - 0.5) / 0.25
    with torch.no_grad():
        outputs = model.denoiser(pixel_values, sigma=70)
    left = torch.nn.functional.mse_loss(outputs.denoised_pixel_values, pixel_values)
    assert left < 0.5 * torch.nn.functional.mse_loss(outputs.noisy_pixel_values, pixel_values)
