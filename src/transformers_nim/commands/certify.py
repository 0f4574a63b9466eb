# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Certified accuracy of De^3 over a data set (randomized smoothing, arXiv 1902.02918), which no attack can lower.

    python examples/certify.py --model_name_or_path MODEL --dataset_name DATA --every_k 20 --output_dir DIR
    accelerate launch --multi_gpu --num_processes 8 examples/certify.py ...
    torchrun --nproc_per_node 8 -- examples/certify.py ...  # without the two dashes torchrun takes --n for its own

Writes to `--output_dir`: `results.json` (curves, settings and one record for each image and sigma) and
`certified_accuracy.png`. A run that was killed goes on with `--resume`, with any number of processes; what was
certified stays. Figures depend on the seed alone, not on processes or batches.

sigma is in units of 0..255 pixels: the literature's 0.12, 0.25, 0.5 and 1.0 are 30.6, 63.75, 127.5 and 255.
"""

import argparse
import hashlib
import json
import platform
import textwrap
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from .. import NIMForRobustImageClassification, NIMImageProcessor, __version__
from ..data.evaluation_set import class_numbers
from ..data.images import EvaluationImages
from ..data.loading import ImageSource
from ..hub import certificate_table
from ..metrics import load_metric
from ..model.smoothing_nim import certifiable_sigma
from ..robustness.classifiers import model_hash
from ..utils.cli import make_parser
from ..utils.extras import require
from ..utils.memory import keep_freed_memory
from ..utils.processes import check_processes, train_on_cpu
from ..utils.records import append_record, read_records, replace_file, start_records
from ..utils.seeding import derive_seed_32


# One record for each image and sigma.
KEYS = ("row", "sigma")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, "--model_name_or_path MODEL --dataset_name DATA --output_dir DIR")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    model = parser.add_argument_group("model and data")
    model.add_argument("--model_name_or_path", required=True, help="a NIMForRobustImageClassification checkpoint")
    model.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    model.add_argument(
        "--dataset_name",
        required=True,
        help="a data set on the Hub, a folder (of parquet files, of images in one folder per class, or written by"
        " save_to_disk) or a .parquet file",
    )
    model.add_argument("--dataset_config_name", help="configuration of a data set that has several")
    model.add_argument("--split", default="test", help="split to certify (default: test)")
    model.add_argument("--every_k", type=int, default=1, help="take each k-th image, beginning with the first")
    model.add_argument("--max_eval_samples", type=int, help="take at most so many of them")
    model.add_argument("--image_column_name", help="column of images; if left out, found by its type or name")
    model.add_argument("--label_column_name", help="column of labels; if left out, found by its type or name")
    model.add_argument(
        "--labels_by_index",
        action="store_true",
        help="the data set's classes have the model's numbers, whatever their names are",
    )
    model.add_argument("--cache_dir", help="folder for downloads")
    model.add_argument("--token", help="token for private data sets and models")
    test = parser.add_argument_group("certificates")
    test.add_argument(
        "--sigmas",
        type=float,
        nargs="+",
        default=[31.9, 63.75, 127.5],
        help="noise scales in units of 0..255 pixels (default: 31.9 63.75 127.5, which is 0.125, 0.25 and 0.5)",
    )
    test.add_argument("--n0", type=int, default=100, help="noise draws that choose the class (default: 100)")
    test.add_argument("--n", type=int, default=10_000, help="noise draws that bound the radius (default: 10000)")
    test.add_argument("--alpha", type=float, default=0.001, help="probability of a wrong certificate (default: 0.001)")
    test.add_argument("--sequential", action="store_true", help="stop early, with the same guarantee")
    test.add_argument("--radius_tolerance", type=float, default=0.0, help="radius to give away for it (default: 0)")
    test.add_argument("--target_radius", type=float, help="radius with which --sequential is content")
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", required=True, help="folder for results, shared by all processes")
    run.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    run.add_argument("--resume", action="store_true", help="go on with the run in --output_dir, if there is one")
    run.add_argument(
        "--per_device_eval_batch_size", type=int, help="noisy images per pass (default: 256, on a CPU 64)"
    )
    run.add_argument(
        "--radii",
        type=float,
        nargs="+",
        default=[0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3],
        help="radii of the table, L2 norms of pixels in [0, 1] (default: 0 0.25 0.5 0.75 1 1.5 2 2.5 3)",
    )
    args = parser.parse_args(argv)
    args.radii = sorted(args.radii)
    for name in ("every_k", "max_eval_samples", "per_device_eval_batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if len(set(args.sigmas)) < len(args.sigmas):
        parser.error(f"--sigmas has a value twice: {args.sigmas}")
    return args


def certify_image(
    model: NIMForRobustImageClassification,
    sample: Mapping[str, Any],
    sigma: float,
    true: int,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """The record of one image at one sigma."""
    row, pixel_values = sample["row"], sample["pixel_values"].to(model.device)
    digest = hashlib.sha256(sample["pixel_values"].numpy().tobytes()).hexdigest()[:16]
    record = {"row": row, "sigma": sigma, "image": digest, "true_label": true}
    if not sample["is_valid"]:
        return record | {"undecodable": True}
    started = time.perf_counter()
    generator = torch.Generator(model.device).manual_seed(derive_seed_32(args.seed, "certify", row, sigma))
    (certificate,) = model.certify(
        pixel_values.unsqueeze(0),
        sigma,
        args.n0,
        args.n,
        args.alpha,
        args.sequential,
        args.radius_tolerance,
        args.target_radius,
        [generator],
        max_batch_size=args.per_device_eval_batch_size,
    )
    return record | {
        "label": certificate.label,
        "radius": certificate.radius,
        "p_lower": certificate.p_lower,
        "candidate": certificate.candidate,
        "votes": certificate.counts[certificate.candidate],
        "num_draws": certificate.num_draws,
        "seconds": round(time.perf_counter() - started, 4),
    }


def summarize(records: Sequence[Mapping[str, Any]], sigmas: Sequence[float], radii: Sequence[float]) -> list[dict]:
    """Certified accuracy at the given radii, for each sigma."""
    curves = []
    for sigma in sigmas:
        own = [record for record in records if record["sigma"] == sigma and not record.get("undecodable")]
        if not own:
            raise ValueError("none of the images can be decoded: is this the column of images?")
        metric = load_metric("certified_accuracy", keep_in_memory=True)
        figures = metric.compute(
            predictions=[record["label"] for record in own],
            certified_radii=[record["radius"] for record in own],
            references=[record["true_label"] for record in own],
            radii=list(radii),
        )
        means = {f"mean_{name}": float(np.mean([record[name] for record in own])) for name in ("num_draws", "seconds")}
        curves.append({"sigma": sigma, "sigma_01": sigma / 255, **figures, **means})
    return curves


def plot_curves(records: Sequence[Mapping[str, Any]], sigmas: Sequence[float], title: str, path: Path) -> None:
    """Certified accuracy over the radius, a curve with its 95 % band for each sigma."""
    plt = require("matplotlib.pyplot")
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    largest = max((record["radius"] for record in records if not record.get("undecodable")), default=0) or 0.1
    radii = np.linspace(0, 1.03 * largest, 400)
    for curve in summarize(records, sigmas, radii):
        mean = 100 * np.array(curve["certified_accuracy"])
        (line,) = axes.plot(
            radii, mean, label=f"sigma {curve['sigma']:g} ({curve['sigma_01']:.3g} for pixels in [0, 1])"
        )
        band = [100 * np.array(curve[f"certified_accuracy_{end}"]) for end in ("low", "high")]
        # Not beyond the last radius: it is mostly the one that the number of draws allows.
        axes.fill_between(radii, *band, where=mean > 0, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set(
        xlabel="radius: L2 norm of the perturbation, pixels in [0, 1]",
        ylabel="certified accuracy in %",
        title=title,
        xlim=(0, radii[-1]),
        ylim=(0, 102),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def describe(args: argparse.Namespace, dataset: str, num_images: int) -> str:
    """A sentence that says how the figures were made."""
    draws = f"n0 = {args.n0}, n = {args.n:,}, alpha = {args.alpha:g}"
    if args.sequential:
        target = f", content with radius {args.target_radius:g}" if args.target_radius is not None else ""
        draws += f", sequential (alpha spending), radius tolerance {args.radius_tolerance:g}{target}"
    every = f", one of every {args.every_k}" if args.every_k > 1 else ""
    return (
        f"Certified accuracy on {num_images} images of {dataset} ({args.split}{every}) with 95 % intervals over images"
        f" (Wilson). Randomized smoothing, L2 norm of pixels in [0, 1]: {draws}, Clopper-Pearson; noise of scale sigma"
        f" in units of 0..255 pixels (in brackets: of pixels in [0, 1]), seed {args.seed}, {args.dtype}. The guarantee"
        " is that of the vote under noise."
    )


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """The command line; returns, on the main process, what `results.json` holds."""
    args = parse_arguments(argv)
    accelerate = require("accelerate")
    # Processes end at different times, those that had easy images first.
    patience = accelerate.InitProcessGroupKwargs(timeout=timedelta(weeks=4))
    accelerator = accelerate.Accelerator(cpu=train_on_cpu(), kwargs_handlers=[patience])
    check_processes(accelerator)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    source = {"cache_dir": args.cache_dir, "token": args.token}
    model = NIMForRobustImageClassification.from_pretrained(
        args.model_name_or_path, dtype=getattr(torch, args.dtype), **source
    )
    for sigma in args.sigmas:
        certifiable_sigma(model.config, sigma)
    data = ImageSource(
        dataset_name=args.dataset_name,
        dataset_config_name=args.dataset_config_name,
        train_split_name=args.split,
        train_val_split=0,
        image_column_name=args.image_column_name,
        label_column_name=args.label_column_name,
        **source,
    ).load(with_labels=True)
    number_of = class_numbers(data, model.config, args.labels_by_index)
    rows = list(range(0, len(data.train), args.every_k))[: args.max_eval_samples]
    processor = NIMImageProcessor.from_config(model.config)
    images = EvaluationImages(data.train, data.reader(data.train, model.config.num_channels), processor)

    names = ("dataset_config_name", "split", "every_k", "max_eval_samples", "labels_by_index", "dtype", "sigmas", "n0",
             "n", "alpha", "sequential", "radius_tolerance", "target_radius", "seed")  # fmt: skip
    settings = {name: getattr(args, name) for name in names}
    settings |= {"dataset": data.name, "dataset_images": len(data.train), "model_hash": model_hash(model)}
    model.to(accelerator.device)
    if accelerator.is_main_process:
        start_records(args.output_dir, settings, KEYS, args.resume)
    accelerator.wait_for_everyone()
    done = {(record["row"], record["sigma"]) for record in read_records(args.output_dir, KEYS)}
    # Nobody appends before everybody has read what is done.
    accelerator.wait_for_everyone()
    tasks = [(row, sigma) for row in rows for sigma in args.sigmas]
    pending = [task for task in tasks if task not in done]
    accelerator.print(
        f"{len(rows)} images at {len(args.sigmas)} sigmas: {len(tasks) - len(pending)} of {len(tasks)} are done;"
        f" {accelerator.num_processes} process(es) on {accelerator.device.type}"
    )
    own = pending[accelerator.process_index :: accelerator.num_processes]
    for row, sigma in require("tqdm").tqdm(
        own, desc="certifying, this process's part", unit="image", disable=not accelerator.is_main_process
    ):
        sample = images[row]
        record = certify_image(model, sample, sigma, number_of[sample["labels"]], args)
        append_record(args.output_dir, accelerator.process_index, record)
    accelerator.wait_for_everyone()
    results = finish(args, settings, tasks, accelerator) if accelerator.is_main_process else {}
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return results


def finish(args: argparse.Namespace, settings: dict[str, Any], tasks: list, accelerator: Any) -> dict[str, Any]:
    """Writes results and plot, and prints the table."""
    output_dir = Path(args.output_dir)
    records = read_records(output_dir, KEYS)
    if [(record["row"], record["sigma"]) for record in records] != sorted(tasks):
        raise RuntimeError(f"the records in {output_dir} are not those of this run: has another run written there?")
    identities = {record["row"]: record["image"] for record in records}
    undecodable = sorted({record["row"] for record in records if record.get("undecodable")})
    curves = summarize(records, args.sigmas, args.radii)
    results = {
        "protocol": describe(args, settings["dataset"], len(identities) - len(undecodable)),
        "settings": settings,
        "images_hash": hashlib.sha256(json.dumps(sorted(identities.items())).encode()).hexdigest()[:16],
        "num_images": len(identities) - len(undecodable),
        "undecodable_rows": undecodable,
        "curves": curves,
        "device": accelerator.device.type,
        "num_processes": accelerator.num_processes,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "scipy": require("scipy").__version__,
            "transformers_nim": __version__,
        },
        "records": records,
    }
    plot_curves(records, args.sigmas, f"{settings['dataset']}, {args.split}", output_dir / "certified_accuracy.png")
    replace_file(output_dir / "results.json", json.dumps(results, indent=2) + "\n")
    print(f"\n{textwrap.fill(results['protocol'], 100)}\n\n{certificate_table(curves)}\n")
    if undecodable:
        print(f"{len(undecodable)} images could not be decoded and are left out: rows {undecodable[:10]}")
    print(f"results.json, certified_accuracy.png: {output_dir}")
    return results
