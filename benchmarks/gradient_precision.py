# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Are attacks that search in bfloat16 as strong as those in float32, and how much faster are they?

    python benchmarks/gradient_precision.py --model_name_or_path MODEL --dataset_name DATA --output_dir DIR

The same EOT-PGD attacks the same images from the same starts with the same noise, once with a model that computes in
float32 and once under autocast to bfloat16. What either finds is judged in float32 on fresh noise, the same for both,
so that differences are paired. Images that are wrong in every draw without an attack are not attacked, and count as
equal; the table says how many were attacked. Groups of images alternate in which precision comes first, so that a
machine that slows down slows both. Prints a table and
writes `gradient_precision.json`. An interval of the difference that lies above 0 means that bfloat16 attacks are
weaker; one that includes 0 says no more than that the difference is not larger than its ends.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import transformers_nim
from transformers_nim.attacks import PixelClassifier, make_attack
from transformers_nim.data.evaluation_set import EvaluationSet
from transformers_nim.data.loading import ImageSource
from transformers_nim.robustness.accuracy import correct_draws
from transformers_nim.robustness.classifiers import load_classifier
from transformers_nim.robustness.protocol import PRECISIONS
from transformers_nim.utils.extras import require
from transformers_nim.utils.memory import keep_freed_memory
from transformers_nim.utils.seeding import derive_seed
from transformers_nim.utils.statistics import Accuracy, Difference, mean_accuracy, paired_difference
from transformers_nim.utils.text_table import render_table


def summarize(
    sigma: float, clean: np.ndarray, left: dict[str, np.ndarray], seconds: dict[str, list[float]]
) -> dict[str, Any]:
    """Figures of one sigma.

    Args:
        sigma: Of the defense.
        clean: Whether the draws of the images without an attack are right, shape `(images, draws)`.
        left: The same of what an attack in either precision found.
        seconds: Of every group of images that was attacked, in either precision.
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


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """The command line; returns what `gradient_precision.json` holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--dataset_name", required=True, help="as for examples/evaluate_robustness.py")
    parser.add_argument("--split", default="test")
    parser.add_argument("--labels_by_index", action="store_true",
                        help="the data set's classes have the model's numbers, whatever their names are")  # fmt: skip
    parser.add_argument("--max_eval_samples", type=int, default=48, help="images, from a shuffled split")
    parser.add_argument("--sigma", type=float, nargs="+", default=[25.0, 75.0], help="in units of 0..255 pixels")
    parser.add_argument("--eps", type=float, default=8.0, help="Linf, in units of 0..255 pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--num_draws", type=int, default=10, help="noise draws over which gradients are averaged")
    parser.add_argument("--restarts", type=int, default=1, help="runs with each loss")
    parser.add_argument("--num_evaluations", type=int, default=20, help="fresh draws by which an image is judged")
    parser.add_argument("--rows_per_pass", type=int, default=40, help="noisy images per pass")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", required=True)
    args = parser.parse_args(argv)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    model, processor = load_classifier(args.model_name_or_path, device)
    data = ImageSource(args.dataset_name, train_split_name=args.split, train_val_split=0).load(with_labels=True)
    images = EvaluationSet.from_data(data, model, processor, args.max_eval_samples, args.labels_by_index)
    rows = [image.row for image in images.images]
    pixels = torch.stack([images.read(row) for row in rows]).to(device)
    labels = torch.tensor([image.label for image in images.images], device=device)
    batch_size = max(args.rows_per_pass, args.num_draws)
    size = batch_size // args.num_draws
    attack = make_attack(
        "eot_pgd", steps=args.steps, num_draws=args.num_draws, restarts=args.restarts, batch_size=batch_size
    )

    def right(sigma: float, finished: torch.Tensor) -> np.ndarray:
        exact = PixelClassifier(model, image_processor=processor, sigma=sigma, num_samples=1)
        return correct_draws(exact, finished, labels, args.num_evaluations, args.rows_per_pass, args.seed)

    def search(name: str, sigma: float, part: list[int]) -> tuple[torch.Tensor, float]:
        searched = PixelClassifier(
            model, image_processor=processor, sigma=sigma, num_samples=1, autocast_dtype=PRECISIONS[name]
        )
        seeds = [derive_seed(args.seed, "attack", rows[index], str(sigma)) for index in part]
        started = time.perf_counter()
        found = attack(searched, pixels[part], labels[part], norm="Linf", eps=args.eps / 255, seeds=seeds)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return found, time.perf_counter() - started

    # The first passes of either precision are slower than all others.
    for name in PRECISIONS:
        warm_up = PixelClassifier(
            model, image_processor=processor, sigma=args.sigma[0], autocast_dtype=PRECISIONS[name]
        )
        # A whole group, as what follows: kernels are made for every size.
        few = slice(0, size)
        seeds = list(range(len(pixels[few])))
        attack(warm_up, pixels[few], labels[few], norm="Linf", eps=args.eps / 255, seeds=seeds)
    summary, runs = [], []
    with require("tqdm").tqdm(total=len(args.sigma) * len(rows), unit="image") as bar:
        for sigma in args.sigma:
            clean = right(sigma, pixels)
            attacked = np.flatnonzero(clean.any(axis=1)).tolist()
            bar.update(len(rows) - len(attacked))
            found = {name: pixels.clone() for name in PRECISIONS}
            seconds: dict[str, list[float]] = {name: [] for name in PRECISIONS}
            for number, start in enumerate(range(0, len(attacked), size)):
                part = attacked[start : start + size]
                for name in list(PRECISIONS)[:: 1 if number % 2 == 0 else -1]:
                    found[name][part], duration = search(name, sigma, part)
                    seconds[name].append(duration)
                bar.update(len(part))
            left = {name: right(sigma, finished) for name, finished in found.items()}
            summary.append({**summarize(sigma, clean, left, seconds), "attacked": len(attacked)})
            runs += [
                {"sigma": sigma, "row": row, "clean": float(clean[index].mean())}
                | {name: float(own[index].mean()) for name, own in left.items()}
                for index, row in enumerate(rows)
            ]

    names = ("split", "eps", "steps", "num_draws", "restarts", "num_evaluations", "rows_per_pass", "seed")
    results = {
        "settings": {"model": Path(args.model_name_or_path).name, "dataset": data.name, "images": len(rows),
                     "norm": "Linf", "device": device.type, "threads": torch.get_num_threads()}
        | {name: getattr(args, name) for name in names},
        "summary": summary,
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "transformers_nim": transformers_nim.__version__},
        "runs": runs,
    }  # fmt: skip
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "gradient_precision.json").write_text(json.dumps(results, indent=2) + "\n")
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
            f"{row['sigma']:g}",
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
    print(f"\n{results['settings']}\n\nAccuracies in % with 95 % intervals.\n\n{render_table(columns, lines)}\n")
    return results


if __name__ == "__main__":
    main()
