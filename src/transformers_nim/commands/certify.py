# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Certify the accuracy of De^3 over a data set (randomized smoothing, arXiv 1902.02918), which no attack can lower.

    transformers-nim certify --model_name_or_path MODEL --dataset_name DATA --every_k 20 --output_dir DIR
    transformers-nim certify --launch ddp ...  # on the 8 GPUs of a node

Writes to `--output_dir`: `results.json` (curves, settings and one record per image and sigma) and
`certified_accuracy.png`. A killed run goes on with `--resume`, with any number of processes; no image is certified
twice. Figures depend on the seed alone, not on processes or batches.

sigma is in units of 0..255 pixels: the literature's 0.12, 0.25, 0.5 and 1.0 are 30.6, 63.75, 127.5 and 255.
"""

import argparse
import hashlib
import json
import math
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import NIMForRobustImageClassification, NIMImageProcessor
from ..data.evaluation_set import add_split_arguments, class_numbers, load_split
from ..data.images import EvaluationImages
from ..model.smoothing_nim import certifiable_sigma
from ..robustness.certificates import certificate_table, certified_curves, describe_certificates, plot_certificates
from ..robustness.classifiers import model_hash
from ..utils.cli import check_arguments, make_parser, run_command
from ..utils.extras import require
from ..utils.processes import MEASURING_PACKAGES, measuring_accelerator
from ..utils.records import append_record, read_records, replace_file, start_records
from ..utils.seeding import derive_seed_32
from ..utils.text_table import plural
from ..utils.versions import package_versions


# One record per image and sigma.
KEYS = ("row", "sigma")
_SETTINGS = ("dataset_config_name", "split", "every_k", "max_eval_samples", "labels_by_index", "dtype", "sigmas", "n0",
             "n", "alpha", "sequential", "radius_tolerance", "target_radius", "seed")  # fmt: skip


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line, or exit with an error."""
    parser = make_parser(
        __doc__,
        "--model_name_or_path MODEL --dataset_name DATA --output_dir DIR",
        (*MEASURING_PACKAGES, "scipy"),
        "transformers_nim.commands.certify",
    )
    model = parser.add_argument_group("model and data")
    model.add_argument("--model_name_or_path", help="a NIMForRobustImageClassification checkpoint")
    model.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="type of the weights"
    )
    add_split_arguments(model)
    model.add_argument("--every_k", type=int, default=1, help="take each k-th image, beginning with the first")
    model.add_argument("--max_eval_samples", type=int, help="take at most so many of them")
    test = parser.add_argument_group("certificates")
    test.add_argument("--sigmas", type=float, nargs="+", default=[31.9, 63.75, 127.5],
                      help="noise scales in units of 0..255 pixels; for pixels in [0, 1] the defaults are 0.125, 0.25"
                      " and 0.5")  # fmt: skip
    test.add_argument("--n0", type=int, default=100, help="noise draws that choose the class")
    test.add_argument("--n", type=int, default=10_000, help="noise draws that bound the radius")
    test.add_argument("--alpha", type=float, default=0.001, help="probability of a wrong certificate")
    test.add_argument("--sequential", action="store_true", help="stop early, with the same guarantee")
    test.add_argument("--radius_tolerance", type=float, default=0.0, help="radius to give away for it")
    test.add_argument("--target_radius", type=float, help="radius with which --sequential is content")
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", help="folder for results, shared by all processes")
    run.add_argument("--seed", type=int, default=0, help="seed of the noise")
    run.add_argument("--resume", action="store_true", help="go on with the run in --output_dir, if there is one")
    run.add_argument("--per_device_eval_batch_size", type=int,
                     help="noisy images per pass (default: 256, on a CPU 64)")  # fmt: skip
    run.add_argument("--radii", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3],
                     help="radii of the table, L2 norms of pixels in [0, 1]")  # fmt: skip
    args = parser.parse_args(argv)
    args.radii = sorted(args.radii)
    required = ("model_name_or_path", "dataset_name", "output_dir")
    check_arguments(parser, args, required, ("every_k", "max_eval_samples", "per_device_eval_batch_size", "n0", "n"))
    if not 0 < args.alpha < 1:
        parser.error(f"--alpha is a probability of error between 0 and 1, such as 0.001, got {args.alpha:g}")
    if (args.radius_tolerance or args.target_radius is not None) and not args.sequential:
        parser.error("--radius_tolerance and --target_radius stop a sequential test; pass --sequential with them")
    if not 0 <= args.radius_tolerance < math.inf:
        parser.error(f"--radius_tolerance must be at least 0, got {args.radius_tolerance:g}")
    if args.target_radius is not None and not 0 < args.target_radius < math.inf:
        parser.error(f"--target_radius must be greater than 0, got {args.target_radius:g}")
    for sigma in args.sigmas:
        if not 0 < sigma < math.inf:
            parser.error(f"--sigmas must be greater than 0 (without noise nothing can be certified), got {sigma:g}")
    if args.radii[0] < 0:
        parser.error(f"--radii must be at least 0, got {args.radii[0]:g}")
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
    """Certify one image at one sigma. Return its record."""
    row, pixel_values = sample["row"], sample["pixel_values"].to(model.device)
    digest = hashlib.sha256(sample["pixel_values"].numpy().tobytes()).hexdigest()[:16]
    record = {"row": row, "sigma": sigma, "image": digest, "true_label": true}
    if not sample["is_valid"]:
        return record | {"undecodable": True}
    started = time.perf_counter()
    generator = torch.Generator(model.device).manual_seed(derive_seed_32(args.seed, "certify", row, sigma))
    (certificate,) = model.certify(
        pixel_values.unsqueeze(0), sigma, args.n0, args.n, args.alpha, args.sequential, args.radius_tolerance,
        args.target_radius, [generator], max_batch_size=args.per_device_eval_batch_size,
    )  # fmt: skip
    return record | {
        "label": certificate.label,
        "radius": certificate.radius,
        "p_lower": certificate.p_lower,
        "candidate": certificate.candidate,
        "votes": certificate.counts[certificate.candidate],
        "num_draws": certificate.num_draws,
        "seconds": round(time.perf_counter() - started, 4),
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the command line. Return what `results.json` holds, on the main process."""
    args = parse_arguments(argv)
    accelerator = measuring_accelerator()
    model = NIMForRobustImageClassification.from_pretrained(
        args.model_name_or_path, dtype=getattr(torch, args.dtype), cache_dir=args.cache_dir, token=args.token
    )
    for sigma in args.sigmas:
        certifiable_sigma(model.config, sigma)
    data = load_split(args)
    number_of = class_numbers(data, model.config, args.labels_by_index)
    rows = list(range(0, len(data.train), args.every_k))[: args.max_eval_samples]
    processor = NIMImageProcessor.from_config(model.config)
    images = EvaluationImages(data.train, data.reader(data.train, model.config.num_channels), processor)

    settings = {name: getattr(args, name) for name in _SETTINGS}
    settings |= {"dataset": data.name, "dataset_images": len(data.train), "model_hash": model_hash(model)}
    model.to(accelerator.device)
    if accelerator.is_main_process:
        start_records(args.output_dir, settings, KEYS, args.resume)
    tasks = [(row, sigma) for row in rows for sigma in args.sigmas]
    for row, sigma in own_tasks(tasks, args, accelerator):
        sample = images[row]
        record = certify_image(model, sample, sigma, number_of[sample["labels"]], args)
        append_record(args.output_dir, accelerator.process_index, record)
    accelerator.wait_for_everyone()
    results = write_results(args, settings, tasks, accelerator) if accelerator.is_main_process else {}
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return results


def own_tasks(tasks: list[tuple[int, float]], args: argparse.Namespace, accelerator: Any) -> Any:
    """Return this process's pending tasks, in a progress bar."""
    accelerator.wait_for_everyone()
    done = {(record["row"], record["sigma"]) for record in read_records(args.output_dir, KEYS)}
    # Nobody appends before everybody has read what is done.
    accelerator.wait_for_everyone()
    pending = [task for task in tasks if task not in done]
    accelerator.print(
        f"{plural(len(tasks) // len(args.sigmas), 'image')} at {plural(len(args.sigmas), 'sigma')}:"
        f" {len(tasks) - len(pending):,} of {plural(len(tasks), 'certificate')} done;"
        f" {plural(accelerator.num_processes, 'process')} on {accelerator.device.type}"
    )
    own = pending[accelerator.process_index :: accelerator.num_processes]
    name = "certifying, this process's part"
    return require("tqdm").tqdm(own, desc=name, unit="image", disable=not accelerator.is_main_process)


def write_results(
    args: argparse.Namespace, settings: dict[str, Any], tasks: list[tuple[int, float]], accelerator: Any
) -> dict[str, Any]:
    """Write results and plot, and print the table. Return the results.

    Raises:
        ValueError: The records are those of other tasks.
    """
    output_dir = Path(args.output_dir)
    records = read_records(output_dir, KEYS)
    if [(record["row"], record["sigma"]) for record in records] != sorted(tasks):
        raise ValueError(f"the records in {output_dir} are not those of this run: has another run written there?")
    identities = {record["row"]: record["image"] for record in records}
    undecodable = sorted({record["row"] for record in records if record.get("undecodable")})
    num_images = len(identities) - len(undecodable)
    curves = certified_curves(records, args.sigmas, args.radii)
    results = {
        "protocol": describe_certificates(settings, num_images),
        "settings": settings,
        "images_hash": hashlib.sha256(json.dumps(sorted(identities.items())).encode()).hexdigest()[:16],
        "num_images": num_images,
        "undecodable_rows": undecodable,
        "curves": curves,
        "device": accelerator.device.type,
        "num_processes": accelerator.num_processes,
        "versions": package_versions("scipy"),
        "records": records,
    }
    title = f"{settings['dataset']}, {args.split}"
    plot_certificates(records, args.sigmas, title, output_dir / "certified_accuracy.png")
    replace_file(output_dir / "results.json", json.dumps(results, indent=2) + "\n")
    print(f"\n{textwrap.fill(results['protocol'], 100)}\n\n{certificate_table(curves)}\n")
    if undecodable:
        print(f"left out, as they cannot be decoded: {plural(len(undecodable), 'image')}, rows {undecodable[:10]}")
    print(f"results.json, certified_accuracy.png: {output_dir}")
    return results


if __name__ == "__main__":
    run_command(main)
