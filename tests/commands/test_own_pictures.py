# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""From a shipped checkpoint and folders of pictures to a pipeline, by the commands of docs/own_pictures.md."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_runs import environment
from transformers import pipeline


START = Path(__file__).parents[2] / "model_cards" / "nim-vit-tiny-patch8-32-cifar10"
COLORS = {"blue": (30, 40, 220), "green": (40, 200, 30), "red": (220, 40, 30)}


def save_pictures(folder: Path, num_pictures: int, seed: int) -> None:
    """JPEG files of noisy colors, of several sizes, in one folder per color."""
    generator = np.random.default_rng(seed)
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for number in range(num_pictures):
            size = tuple(generator.integers(24, 60, size=2))
            pixels = np.clip(generator.normal(color, 40, size=(*size, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.jpg")


def run(*words: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "transformers_nim", *words],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_commands_of_the_page(tmp_path):
    save_pictures(tmp_path / "pictures" / "train", 30, seed=0)
    save_pictures(tmp_path / "pictures" / "test", 6, seed=1)
    printed = run(
        "finetune", "--model_name_or_path", str(START), "--train_dir", "pictures", "--output_dir", "outputs/own",
        "--num_train_epochs", "12", "--num_workers", "0", cwd=tmp_path,
    )  # fmt: skip
    for words in ("new, for 3 classes instead of the checkpoint's 10", "defense sigma 50", "uniform 0-100",
                  "8 images x 1 process x 1 pass = 8 per update (64 would make 1.3 updates per epoch)",
                  "0.0005 x 256 / 256, the least", "the denoiser is better than none"):  # fmt: skip
        assert words in printed
    # The command that the run proposes, made small.
    (command,) = [line.split() for line in printed.splitlines() if line.startswith("  transformers-nim evaluate")]
    small = "--max_eval_samples 4 --steps 1 --num_draws 1 --num_queries 2 --num_check_images 2 --sigmas --eps_grid"
    run(*command[1:], *small.split(), "--no_autoattack", cwd=tmp_path)
    report = json.loads((tmp_path / "outputs" / "own" / "robustness" / "results.json").read_text())
    assert (report["settings"]["split"], report["settings"]["sigma"]) == ("test", 50.0)
    pipe = pipeline("image-classification", model=str(tmp_path / "outputs" / "own"), num_samples=4, seed=0, top_k=1)
    pictures = sorted((tmp_path / "pictures" / "test").glob("*/*.jpg"))
    answers = [pipe(Image.open(path))[0]["label"] for path in pictures]
    assert np.mean([answer == path.parent.name for answer, path in zip(answers, pictures)]) > 0.8
