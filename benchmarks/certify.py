# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Measure what a certificate costs: noise draws and seconds per image, by the plain procedure and sequential tests.

    python benchmarks/certify.py --model_name_or_path MODEL --dataset_name DATA --output_dir DIR

Each repetition certifies each image by all procedures in turn, so that a machine that slows down slows all of them.
Prints a table and writes `certify.json`. Ratios are to the plain procedure (arXiv 1902.02918) of the same run.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transformers_nim import ABSTAIN, NIMForRobustImageClassification, NIMImageProcessor
from transformers_nim.data.images import EvaluationImages
from transformers_nim.data.loading import ImageSource
from transformers_nim.utils.extras import require
from transformers_nim.utils.seeding import derive_seed_32
from transformers_nim.utils.text_table import render_table
from transformers_nim.utils.versions import package_versions


def procedures(sigma: float) -> dict[str, dict[str, Any]]:
    """Return options of `certify`, by name. Tolerances and targets are parts of sigma, because radii grow with it."""
    unit = sigma / 255
    return {
        "plain": {},
        "sequential": {"sequential": True},
        "sequential, tolerance 0.1 sigma": {"sequential": True, "radius_tolerance": 0.1 * unit},
        "sequential, tolerance 0.3 sigma": {"sequential": True, "radius_tolerance": 0.3 * unit},
        "sequential, target 1 sigma": {"sequential": True, "target_radius": unit},
    }


def measure(model, image: torch.Tensor, seed: int, args: argparse.Namespace, options: dict[str, Any]) -> dict:
    """Certify an image. Return its certificate and the cost."""
    passes: list[int] = []
    started = time.perf_counter()
    (certificate,) = model.certify(
        image.unsqueeze(0),
        args.sigma,
        args.n0,
        args.n,
        args.alpha,
        generator=[torch.Generator(image.device).manual_seed(seed)],
        max_batch_size=args.batch_size,
        on_pass=passes.append,
        **options,
    )
    seconds = time.perf_counter() - started
    return {
        "label": certificate.label,
        "radius": certificate.radius,
        "num_draws": certificate.num_draws,
        "num_passes": len(passes),
        "seconds": seconds,
    }


def summarize(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return means over images and repetitions, by procedure."""
    keys = ("num_draws", "num_passes", "seconds", "radius")
    plain = {(run["row"], run["repetition"]): run for run in runs if run["procedure"] == "plain"}
    summary = {}
    for name in dict.fromkeys(run["procedure"] for run in runs):
        own = [run for run in runs if run["procedure"] == name]
        means = {key: float(np.mean([run[key] for run in own])) for key in keys}
        lost = [plain[run["row"], run["repetition"]]["radius"] - run["radius"] for run in own]
        summary[name] = {
            **means,
            "speedup": float(np.mean([run["seconds"] for run in plain.values()])) / means["seconds"],
            "mean_radius_lost": float(np.mean(lost)),
            "max_radius_lost": float(np.max(lost)),
            "abstained": float(np.mean([run["label"] == ABSTAIN for run in own])),
        }
    return summary


def table_of(summary: dict[str, dict[str, float]]) -> str:
    """Return the means as a table."""
    columns = ["per image", "draws", "passes", "seconds", "speed-up", "radius"]
    columns += ["lost (mean)", "lost (max)", "abstains"]
    lines = [
        [
            name,
            f"{row['num_draws']:,.0f}",
            f"{row['num_passes']:.1f}",
            f"{row['seconds']:.2f}",
            f"{row['speedup']:.2f}x",
            f"{row['radius']:.3f}",
            f"{row['mean_radius_lost']:.3f}",
            f"{row['max_radius_lost']:.3f}",
            f"{100 * row['abstained']:.0f} %",
        ]
        for name, row in summary.items()
    ]
    return render_table(columns, lines)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the command line. Return what `certify.json` holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--dataset_name", required=True, help="as for examples/certify.py")
    parser.add_argument("--split", default="test")
    parser.add_argument("--max_eval_samples", type=int, default=12, help="images, spread evenly over the split")
    parser.add_argument("--sigma", type=float, default=63.75, help="in units of 0..255 pixels")
    parser.add_argument("--n0", type=int, default=100)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--alpha", type=float, default=0.001)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=256, help="noisy images per pass")
    parser.add_argument("--output_dir", required=True)
    args = parser.parse_args(argv)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = NIMForRobustImageClassification.from_pretrained(args.model_name_or_path).to(device)
    data = ImageSource(args.dataset_name, train_split_name=args.split, train_val_split=0).load()
    processor = NIMImageProcessor.from_config(model.config)
    images = EvaluationImages(data.train, data.reader(data.train, model.config.num_channels), processor)
    rows = np.unique(np.linspace(0, len(images) - 1, args.max_eval_samples).round().astype(int)).tolist()

    runs = []
    measure(model, images[rows[0]]["pixel_values"].to(device), 0, argparse.Namespace(**{**vars(args), "n": 100}), {})
    with require("tqdm").tqdm(total=args.repetitions * len(rows) * len(procedures(args.sigma)), unit="image") as bar:
        for repetition in range(args.repetitions):
            for row in rows:
                image = images[row]["pixel_values"].to(device)
                seed = derive_seed_32("benchmark", repetition, row)
                for name, options in procedures(args.sigma).items():
                    run = measure(model, image, seed, args, options)
                    runs.append({"procedure": name, "row": row, "repetition": repetition, **run})
                    bar.update()

    summary = summarize(runs)
    results = {
        "settings": {"dataset": data.name, "images": len(rows), "device": device.type}
        | {name: getattr(args, name) for name in ("sigma", "n0", "n", "alpha", "repetitions", "batch_size", "split")},
        "summary": summary,
        "versions": package_versions(),
        "runs": runs,
    }
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "certify.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{results['settings']}\n\n{table_of(summary)}\n")
    return results


if __name__ == "__main__":
    main()
