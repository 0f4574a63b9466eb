# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Compare the strength and the speed of attacks that search in bfloat16 with those that search in float32.

    python benchmarks/gradient_precision.py --model_name_or_path MODEL --dataset_name DATA --output_dir DIR

The same EOT-PGD attacks the same images from the same starts with the same noise, once with a model in float32 and
once under autocast to bfloat16. The results of both are classified in float32 under the same fresh noise, so that
differences are paired. Images that are wrong in every noise draw without an attack are not attacked and count as
equal; the table says how many were attacked. The precision that comes first alternates between groups of images, so
that a machine that slows down slows both.

Prints a table and writes `gradient_precision.json`. An interval of the difference above 0 means that bfloat16 attacks
are weaker. An interval that includes 0 means only that the difference is not larger than its ends.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transformers_nim.attacks import PixelClassifier, make_attack
from transformers_nim.data.evaluation_set import EvaluationSet
from transformers_nim.data.loading import ImageSource
from transformers_nim.robustness.accuracy import correct_draws
from transformers_nim.robustness.classifiers import load_with_processor
from transformers_nim.robustness.protocol import PRECISIONS
from transformers_nim.utils.extras import require
from transformers_nim.utils.memory import keep_freed_memory
from transformers_nim.utils.seeding import derive_seed
from transformers_nim.utils.statistics import Accuracy, Difference, mean_accuracy, paired_difference
from transformers_nim.utils.text_table import render_table, sigma_key
from transformers_nim.utils.versions import package_versions


@dataclass
class Comparison:
    """Attacks on the same images in both precisions.

    Attributes:
        model: The defense.
        processor: Its image processor.
        pixels: Images in [0, 1].
        labels: Their classes.
        rows: Their rows in the data set.
        args: The command line.
    """

    model: Any
    processor: Any
    pixels: torch.Tensor
    labels: torch.Tensor
    rows: list[int]
    args: argparse.Namespace

    @cached_property
    def attack(self) -> Any:
        args, batch_size = self.args, max(self.args.rows_per_pass, self.args.num_draws)
        return make_attack(
            "eot_pgd", steps=args.steps, num_draws=args.num_draws, restarts=args.restarts, batch_size=batch_size
        )

    @property
    def group_size(self) -> int:
        """Images that are attacked at once."""
        return max(self.args.rows_per_pass // self.args.num_draws, 1)

    def correct(self, sigma: float, pixels: torch.Tensor) -> np.ndarray:
        """Return correctness in float32 per image and noise draw, shape `(images, draws)`."""
        exact = PixelClassifier(self.model, image_processor=self.processor, sigma=sigma, num_samples=1)
        args = self.args
        return correct_draws(exact, pixels, self.labels, args.num_evaluations, args.rows_per_pass, args.seed)

    def search(self, precision: str, sigma: float, part: list[int], seeds: list[int]) -> tuple[torch.Tensor, float]:
        """Attack some of the images. Return what was found, and the seconds it took."""
        searched = PixelClassifier(
            self.model,
            image_processor=self.processor,
            sigma=sigma,
            num_samples=1,
            autocast_dtype=PRECISIONS[precision],
        )
        pixels, labels = self.pixels[part], self.labels[part]
        started = time.perf_counter()
        found = self.attack(searched, pixels, labels, norm="Linf", eps=self.args.eps / 255, seeds=seeds)
        if pixels.device.type == "cuda":
            torch.cuda.synchronize()
        return found, time.perf_counter() - started

    def warm_up(self) -> None:
        """Attack a whole group in each precision: the first passes of each size are slower than all others."""
        few = list(range(min(self.group_size, len(self.rows))))
        for precision in PRECISIONS:
            self.search(precision, self.args.sigma[0], few, few)

    def run(self, sigma: float, on_images: Callable[[int], object]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Attack the images in both precisions.

        Args:
            sigma: Of the defense, in units of 0..255 pixels.
            on_images: Called with the number of images that are done.

        Returns:
            The summary, and a record of each image.
        """
        clean = self.correct(sigma, self.pixels)
        attacked = np.flatnonzero(clean.any(axis=1)).tolist()
        on_images(len(self.rows) - len(attacked))
        found = {precision: self.pixels.clone() for precision in PRECISIONS}
        seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
        for number, start in enumerate(range(0, len(attacked), self.group_size)):
            part = attacked[start : start + self.group_size]
            seeds = [derive_seed(self.args.seed, "attack", self.rows[index], str(sigma)) for index in part]
            for precision in list(PRECISIONS)[:: 1 if number % 2 == 0 else -1]:
                found[precision][part], duration = self.search(precision, sigma, part, seeds)
                seconds[precision].append(duration)
            on_images(len(part))
        left = {precision: self.correct(sigma, finished) for precision, finished in found.items()}
        runs = [
            {"sigma": sigma, "row": row, "clean": float(clean[index].mean())}
            | {precision: float(own[index].mean()) for precision, own in left.items()}
            for index, row in enumerate(self.rows)
        ]
        return {**summarize(sigma, clean, left, seconds), "attacked": len(attacked)}, runs


def summarize(
    sigma: float, clean: np.ndarray, left: dict[str, np.ndarray], seconds: dict[str, list[float]]
) -> dict[str, Any]:
    """Return the figures of one sigma.

    Args:
        sigma: Of the defense, in units of 0..255 pixels.
        clean: Correctness without an attack per image and noise draw, shape `(images, draws)`.
        left: The same under the attack in each precision.
        seconds: Seconds of each attacked group, in each precision.
    """
    difference = paired_difference(left["bf16"], left["fp32"])
    total = {name: sum(times) for name, times in seconds.items()}
    return {
        "sigma": sigma,
        "images": len(clean),
        "clean": vars(mean_accuracy(clean)),
        "accuracy": {name: vars(mean_accuracy(own)) for name, own in left.items()},
        "difference": vars(difference),
        "includes_zero": difference.includes_zero,
        "seconds": total,
        "speedup": total["fp32"] / total["bf16"] if total["bf16"] else None,
    }


def table_of(summary: list[dict[str, Any]]) -> str:
    """Return the summaries as a table, accuracies in percent."""
    columns = [
        "sigma",
        "attacked",
        "clean",
        "fp32 leaves",
        "bf16 leaves",
        "bf16 - fp32",
        "fp32 s",
        "bf16 s",
        "speed-up",
    ]
    lines = [
        [
            sigma_key(row["sigma"]),
            f"{row['attacked']} of {row['images']}",
            *(
                str(Accuracy(**one)).strip()
                for one in (row["clean"], row["accuracy"]["fp32"], row["accuracy"]["bf16"])
            ),
            str(Difference(**row["difference"])),
            *(f"{row['seconds'][name]:.1f}" for name in PRECISIONS),
            "-" if row["speedup"] is None else f"{row['speedup']:.2f}x",
        ]
        for row in summary
    ]
    return render_table(columns, lines)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--dataset_name", required=True, help="as for examples/evaluate_robustness.py")
    parser.add_argument("--split", default="test")
    parser.add_argument("--labels_by_index", action="store_true",
                        help="match classes of the data set and of the model by number, not by name")  # fmt: skip
    parser.add_argument("--max_eval_samples", type=int, default=48, help="images, from a shuffled split")
    parser.add_argument("--sigma", type=float, nargs="+", default=[25.0, 75.0], help="in units of 0..255 pixels")
    parser.add_argument("--eps", type=float, default=8.0, help="Linf, in units of 0..255 pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--num_draws", type=int, default=10, help="noise draws per gradient")
    parser.add_argument("--restarts", type=int, default=1, help="runs with each loss")
    parser.add_argument("--num_evaluations", type=int, default=20, help="fresh noise draws that judge an image")
    parser.add_argument("--rows_per_pass", type=int, default=40, help="noisy images per pass")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", required=True)
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the command line. Return what `gradient_precision.json` holds."""
    args = make_parser().parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    model, processor = load_with_processor(args.model_name_or_path, device)
    data = ImageSource(args.dataset_name, train_split_name=args.split, train_val_split=0).load(with_labels=True)
    images = EvaluationSet.from_data(data, model, processor, args.max_eval_samples, args.labels_by_index)
    rows = [image.row for image in images.images]
    pixels = torch.stack([images.read(row) for row in rows]).to(device)
    labels = torch.tensor([image.label for image in images.images], device=device)
    comparison = Comparison(model, processor, pixels, labels, rows, args)
    comparison.warm_up()
    summary, runs = [], []
    with require("tqdm").tqdm(total=len(args.sigma) * len(rows), unit="image") as bar:
        for sigma in args.sigma:
            figures, records = comparison.run(sigma, bar.update)
            summary.append(figures)
            runs += records

    names = ("split", "eps", "steps", "num_draws", "restarts", "num_evaluations", "rows_per_pass", "seed")
    results = {
        "settings": {"model": Path(args.model_name_or_path).name, "dataset": data.name, "images": len(rows),
                     "norm": "Linf", "device": device.type, "threads": torch.get_num_threads()}
        | {name: getattr(args, name) for name in names},
        "summary": summary,
        "versions": package_versions(),
        "runs": runs,
    }  # fmt: skip
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "gradient_precision.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{results['settings']}\n\nAccuracies in % with 95 % intervals.\n\n{table_of(summary)}\n")
    return results


if __name__ == "__main__":
    main()
