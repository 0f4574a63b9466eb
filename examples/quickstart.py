# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Pretrain, fine-tune, attack and defend a small NIM model on scikit-learn's handwritten digits.

    python examples/quickstart.py                 # a few minutes on two CPU cores
    python examples/quickstart.py --fast          # seconds: shows that everything runs, not what it can do

It calls the package's own commands and prints each as you would type it. In the end `--output_dir` holds the defended
model for `from_pretrained`, with image processor, model card and `robustness.json`. Its folder `work` has all else:
the data, the other models, and for each model a report of its robustness with pictures.
"""

import argparse
import shlex
import shutil
import textwrap
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from transformers_nim.commands import evaluate, finetune, pretrain
from transformers_nim.hub import write_card
from transformers_nim.robustness import RobustnessReport
from transformers_nim.utils.cli import run_command
from transformers_nim.utils.extras import require
from transformers_nim.utils.interruption import Interrupted
from transformers_nim.utils.text_table import percent, render_table, sigma_label


# A model for 8x8 grey pictures.
MODEL = (
    "--config_name tiny-patch8-32 --config_overrides image_size=8,patch_size=2,num_channels=1,hidden_size=64,"
    "intermediate_size=256,decoder_hidden_size=32,decoder_num_hidden_layers=1,decoder_intermediate_size=128"
)
# Digits are neither mirrored nor cropped; the other augmentations are for photographs as well.
TRAINING = "--horizontal_flip 0 --crop_scale 1 1 --max_grad_norm 1 --mixed_precision no --report_to none"
PRETRAINING = f"{MODEL} {TRAINING} --learning_rate 3e-3"
FINETUNING = (
    f"{TRAINING} --auto_augment none --random_erasing 0 --mixup 0 --cutmix 0 --learning_rate 2e-3 --layer_decay 1"
    # The noise of training covers every sigma that is evaluated.
    " --sigma_high 100 --defense_sigma 50"
)
# The model and the sort of images that it was fine-tuned on, as the table names it.
BASELINES = {"clean": "undefended", "noisy": "undefended, noise-augmented"}
# In this order: steps of pretraining and of fine-tuning, and how much the attacks do.
# In float32, so that every machine prints nearly the same.
WHOLE = (800, 400, "--attack_precision fp32 --steps 10 --num_draws 4 --num_queries 100 --sigmas off 0 25 50 75 100")
FAST = (20, 20, "--steps 2 --num_draws 2 --num_queries 4 --num_check_images 4 --sigmas off 0 50")
NOTICE = "examples/quickstart.py has made this folder, and deletes it when it is run again.\n"


def start_folder(output_dir: Path) -> Path:
    """Return the folder `work` of an output folder, emptied of an earlier run.

    Raises:
        ValueError: The output folder holds what this script has not made.
    """
    work = output_dir / "work"
    notice = work / "README.txt"
    is_new = not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir()))
    if not is_new and not notice.is_file():
        raise ValueError(f"{output_dir} holds files of something else; empty it, or pass another --output_dir")
    for old in (work, *output_dir.glob("checkpoint-*")):
        shutil.rmtree(old, ignore_errors=True)
    # They tell of weights that are about to go.
    for name in ("all_results.json", "card.json", "config.json", "robustness.json"):
        (output_dir / name).unlink(missing_ok=True)
    work.mkdir(parents=True)
    notice.write_text(NOTICE)
    return work


def save_digits(folder: Path) -> None:
    """Write 1,797 grey pictures of 8x8 pixels as a data set: 1,400 to train on and 397 to test with."""
    datasets = require("datasets")
    digits = require("sklearn.datasets").load_digits()
    pixels = np.round(digits.images * 255 / 16).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(pixels))
    names = [str(digit) for digit in range(10)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    splits = {
        name: datasets.Dataset.from_dict({"image": list(pixels[rows]), "label": digits.target[rows]}, features)
        for name, rows in (("train", order[:1400]), ("test", order[1400:]))
    }
    datasets.disable_progress_bars()
    datasets.DatasetDict(splits).save_to_disk(folder)


def run(main: Callable[[list[str]], Any], script: str, paths: dict[str, Path], options: str) -> None:
    """Print a command as one would type it, and run it in this process."""
    words = [word for name, path in paths.items() for word in (f"--{name}", str(path))] + options.split()
    command = shlex.join(["python", f"examples/{script}.py", *words])
    print("\n$ " + " \\\n    ".join(textwrap.wrap(command, 110, break_long_words=False, break_on_hyphens=False)))
    try:
        main(words)
    except KeyboardInterrupt as error:
        # What the command says of going on is of no use here.
        raise Interrupted.of(error, "when it is run again it begins anew", ()) from None


def measure(model: Path, data: Path, folder: Path, options: str) -> RobustnessReport:
    """Attack a model. What the command prints, a long report, goes to `report.md` in the folder."""
    folder.mkdir(parents=True)
    paths = {"model_name_or_path": model, "dataset_name": data, "output_dir": folder}

    def main(words: list[str]) -> None:
        with open(folder / "report.md", "w") as file, redirect_stdout(file):
            evaluate.main(words)

    run(main, "evaluate_robustness", paths, options)
    return RobustnessReport.load(folder)


def table_rows(name: str, report: RobustnessReport) -> list[list[str]]:
    """Return for each sigma of a report its accuracies in percent: without attack, under PGD and under EOT-PGD."""
    rows = []
    for sigma in report.sigmas:
        # At the eps of the report; the attack was made for this sigma.
        attacked = next(row for row in report.eps_curve(sigma) if row.eps == report.settings["eps"])
        accuracies = [attacked.clean, None, attacked.accuracy]
        if sigma == report.settings["sigma"]:
            accuracies[1] = report.row("PGD-10, one draw", sigma).accuracy
        figures = [percent(one.mean, one.low, one.high) if one else "-" for one in accuracies]
        rows.append([name if len(report.sigmas) == 1 else f"{name}, {sigma_label(sigma)}", *figures])
    return rows


def main(argv: list[str] | None = None) -> list[list[str]]:
    """Run the command line; return the rows of the table."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default="outputs/quickstart", help="folder of the defended model")
    parser.add_argument("--eps", type=float, default=48, help="radius of the attacks (Linf) in x/255")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything")
    parser.add_argument("--max_eval_samples", type=int, default=100, help="held-out images to attack")
    parser.add_argument("--max_train_steps", type=int, help="steps of pretraining and of fine-tuning")
    parser.add_argument("--fast", action="store_true", help="a little of everything, to see that it runs")
    args = parser.parse_args(argv)
    for name in ("eps", "max_eval_samples", "max_train_steps"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            parser.error(f"--{name} must be greater than 0, got {getattr(args, name)}")
    pretraining_steps, finetuning_steps, attacks = FAST if args.fast else WHOLE
    num_images = min(10, args.max_eval_samples) if args.fast else args.max_eval_samples
    attacks += f" --max_eval_samples {num_images} --eps {args.eps:g} --eps_grid --no_autoattack --seed {args.seed}"
    # More would be little faster for so small a model, and the figures would depend on their number.
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    robust = args.output_dir
    work = start_folder(robust)
    data = work / "digits"
    save_digits(data)
    paths = {"dataset_name": data, "output_dir": work / "pretraining"}
    steps = f" --max_train_steps {args.max_train_steps or pretraining_steps} --seed {args.seed}"
    run(pretrain.main, "pretrain", paths, PRETRAINING + steps)

    # All three start from the pretrained encoder. The second is a control: it learns from noise, but has no denoiser.
    models = {kind: work / kind for kind in BASELINES} | {"denoised": robust}
    steps = f" --max_train_steps {args.max_train_steps or finetuning_steps} --seed {args.seed}"
    for kind, folder in models.items():
        paths = {"model_name_or_path": work / "pretraining", "dataset_name": data, "output_dir": folder}
        run(finetune.main, "finetune", paths, f"--train_on {kind} {FINETUNING}{steps}")

    rows: list[list[str]] = []
    for kind, folder in models.items():
        report = measure(folder, data, work / f"robustness-{kind}", attacks)
        rows += table_rows(BASELINES.get(kind, "De^3"), report)
    shutil.copy(work / "robustness-denoised" / "results.json", robust / "robustness.json")
    write_card(robust, results=["robustness.json", "all_results.json"])
    print(f"\nAccuracy in % on {num_images} held-out digits, Linf {args.eps:g}/255, with 95 % intervals:\n")
    print(render_table(["accuracy in %", "no attack", "PGD", "EOT-PGD"], rows))
    print(f"\ndefended model, image processor, card: {robust}\nreports and pictures: {work}/robustness-*")
    return rows


if __name__ == "__main__":
    run_command(main)
