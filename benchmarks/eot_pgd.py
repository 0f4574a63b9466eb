# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What white-box attacks on De^3 cost: ours against EOTPGD of torchattacks, at the same settings.

    python benchmarks/eot_pgd.py [--model_name_or_path MODEL] --output_dir DIR

Both take the same steps from a random start, each along the sign of the cross entropy's gradient averaged over the
same number of draws: ours has all draws in one pass, torchattacks asks for one after the other. Repetitions alternate,
so that a machine that slows down slows both. Prints a table and writes `eot_pgd.json`. Without a model it takes a
random one of the size tiny-patch4-32, which is as fast as a trained one.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import transformers_nim
from transformers_nim import NIMConfig, NIMForRobustImageClassification
from transformers_nim.attacks import PixelClassifier, make_attack
from transformers_nim.cards import render_table
from transformers_nim.extras import require


class Plain(nn.Module):
    """The model as a user of torchattacks would wrap it."""

    def __init__(self, model: NIMForRobustImageClassification, sigma: float):
        super().__init__()
        self.model, self.sigma = model, sigma
        for name in ("mean", "std"):
            values = torch.tensor(getattr(model.config, f"image_{name}"))[:, None, None]
            self.register_buffer(name, values.to(model.device))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model((pixels - self.mean) / self.std, sigma=self.sigma, num_samples=1).logits


def summarize(seconds: dict[str, list[float]], num_rows: int) -> list[dict[str, Any]]:
    """One row for each way: median time, its spread, and how many times torchattacks' time fits into it."""
    plain = np.array(seconds["torchattacks EOTPGD"])
    rows = []
    for name, times in seconds.items():
        ratios = plain / np.array(times)
        low, high = np.quantile(ratios, [0.25, 0.75])
        rows.append(
            {
                "name": name,
                "seconds": float(np.median(times)),
                "noisy_images_per_second": num_rows / float(np.median(times)),
                "ratio": float(np.median(ratios)),
                "spread": [float(low), float(high)],
            }
        )
    return rows


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """The command line; returns what `eot_pgd.json` holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path")
    parser.add_argument("--num_images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--num_draws", type=int, default=20)
    parser.add_argument("--sigma", type=float, default=50.0, help="in units of 0..255 pixels")
    parser.add_argument("--eps", type=float, default=8.0, help="Linf, in units of 0..255 pixels")
    parser.add_argument("--rows_per_pass", type=int, nargs="+", default=[20, 40, 80, 160],
                        help="noisy images per pass of ours")  # fmt: skip
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output_dir", required=True)
    args = parser.parse_args(argv)

    torchattacks = require("torchattacks")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.model_name_or_path is None:
        torch.manual_seed(0)
        model = NIMForRobustImageClassification(NIMConfig.from_size("tiny-patch4-32", num_labels=10))
    else:
        model = NIMForRobustImageClassification.from_pretrained(args.model_name_or_path)
    model = model.to(device).eval()
    shape = (args.num_images, model.config.num_channels, *model.config.image_shape)
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(args.num_images, device=device) % model.config.num_labels
    eps = args.eps / 255
    step_size = 2.5 * eps / args.steps
    theirs = torchattacks.EOTPGD(
        Plain(model, args.sigma).eval(), eps=eps, alpha=step_size, steps=args.steps, eot_iter=args.num_draws
    )
    ours = PixelClassifier(model, sigma=args.sigma)

    def run(rows_per_pass: int | None) -> None:
        if rows_per_pass is None:
            theirs(pixels, labels)
            return
        attack = make_attack(
            "eot_pgd", steps=args.steps, step_size=step_size, num_draws=args.num_draws, losses=("ce",), restarts=1,
            keep_best=False, batch_size=max(rows_per_pass, args.num_draws),
        )  # fmt: skip
        attack(ours, pixels, labels, norm="Linf", eps=eps, seeds=list(range(args.num_images)))

    ways = {"torchattacks EOTPGD": None, **{f"ours, {rows} rows per pass": rows for rows in args.rows_per_pass}}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    run(None)
    with require("tqdm").tqdm(total=args.repetitions * len(ways), unit="run") as bar:
        for _ in range(args.repetitions):
            for name, rows in ways.items():
                started = time.perf_counter()
                run(rows)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - started)
                bar.update()
    rows = summarize(seconds, args.num_images * args.steps * args.num_draws)
    names = ("num_images", "steps", "num_draws", "sigma", "eps", "repetitions", "rows_per_pass")
    machine = {"device": device.type, "threads": torch.get_num_threads()}
    results = {
        "settings": {name: getattr(args, name) for name in names}
        | {**machine, "model": args.model_name_or_path or "random tiny-patch4-32"},
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "transformers_nim": transformers_nim.__version__},
        "rows": rows,
    }  # fmt: skip
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "eot_pgd.json").write_text(json.dumps(results, indent=2) + "\n")
    table = [
        [
            row["name"],
            f"{row['seconds']:.2f}",
            f"{row['noisy_images_per_second']:.1f}",
            f"{row['ratio']:.2f}x",
            f"{row['spread'][0]:.2f} to {row['spread'][1]:.2f}",
        ]
        for row in rows
    ]
    columns = ["attack", "seconds", "gradients/s", "ratio", "half of the ratios"]
    print(f"\n{results['settings']}\n\n{render_table(columns, table)}\n")
    return results


if __name__ == "__main__":
    main()
