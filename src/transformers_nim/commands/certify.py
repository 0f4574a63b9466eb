# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Certify the accuracy of De^3 over a data set (randomized smoothing, arXiv 1902.02918), which no attack can lower.

    transformers-nim certify --model_name_or_path MODEL --dataset_name DATA --every_k 20 --output_dir DIR
    transformers-nim certify --launch ddp ...  # on the 8 GPUs of a node

Writes to `--output_dir`: `results.json` (curves, settings and one record per image and sigma) and
`certified_accuracy.png`. A killed run goes on with `--resume`, with any number of processes; no image is certified
twice. Figures depend on the seed alone, not on processes or batches. What it costs is said before it begins, and a
model whose denoiser removes no noise is refused.

sigma is in units of 0..255 pixels: the literature's 0.12, 0.25, 0.5 and 1.0 are 30.6, 63.75, 127.5 and 255.
"""

import argparse
import hashlib
import json
import math
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from .. import NIMForPreTraining, NIMForRobustImageClassification, NIMImageProcessor
from ..data.evaluation_set import add_split_arguments, class_numbers, load_split
from ..data.images import EvaluationImages
from ..model.external_classifier_nim import check_trained
from ..model.noise import default_batch_size, parse_sigma
from ..model.smoothing_nim import certifiable_sigma
from ..robustness.certificates import certificate_table, certified_curves, describe_certificates, plot_certificates
from ..robustness.classifiers import model_hash
from ..training.evaluation import psnr
from ..utils.cli import check_arguments, make_parser, run_command
from ..utils.extras import require
from ..utils.interruption import Interrupted, catch_postponed
from ..utils.output_folder import hold_folder
from ..utils.processes import MEASURING_PACKAGES, measuring_accelerator
from ..utils.records import OTHER_MODEL, append_record, read_records, replace_file, start_records
from ..utils.seeding import derive_seed_32
from ..utils.text_table import plural
from ..utils.versions import package_versions


logger = logging.get_logger(__name__)

# Images on which the denoiser is checked.
_NUM_CHECKED = 8
# Seconds for a single draw from which on nothing else is timed.
_SLOW = 1.0
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
    test.add_argument("--allow_untrained", action="store_true",
                      help="certify a model even if its denoiser removes no noise")  # fmt: skip
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
    on_pass: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Certify one image at one sigma. Return its record."""
    row, pixel_values = sample["row"], sample["pixel_values"].to(model.device)
    record = {"row": row, "sigma": sigma, "image": image_hash(sample), "true_label": true}
    if not sample["is_valid"]:
        return record | {"undecodable": True}
    started = time.perf_counter()
    generator = torch.Generator(model.device).manual_seed(derive_seed_32(args.seed, "certify", row, sigma))
    (certificate,) = model.certify(
        pixel_values.unsqueeze(0), sigma, args.n0, args.n, args.alpha, args.sequential, args.radius_tolerance,
        args.target_radius, [generator], max_batch_size=args.per_device_eval_batch_size, on_pass=on_pass,
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


def image_hash(sample: Mapping[str, Any]) -> str:
    """Return a hash of the pixels that the model sees."""
    return hashlib.sha256(sample["pixel_values"].numpy().tobytes()).hexdigest()[:16]


def check_images(output_dir: str | Path, images: EvaluationImages, number_of: Sequence[int]) -> None:
    """Check that the images that are certified already are those that are there now.

    Raises:
        ValueError: One is not.
    """
    for record in {record["row"]: record for record in read_records(output_dir, KEYS)}.values():
        sample = images[record["row"]]
        if record["image"] != image_hash(sample):
            what = "the image"
        elif record["true_label"] != number_of[sample["labels"]]:
            what = "the label"
        else:
            continue
        raise ValueError(
            f"cannot go on with the run in {output_dir}: {what} in row {record['row']} is another one than that which"
            " was certified. Put the data of then back, or pass another folder"
        )


def check_denoiser(
    model: NIMForRobustImageClassification, images: EvaluationImages, rows: Sequence[int], args: argparse.Namespace
) -> None:
    """Check on a few images that the denoiser has learnt to remove noise, and warn of a sigma at which it does harm.

    A denoiser counts as untrained if its images are no closer to the clean ones than both the noisy images and these
    with each patch replaced by its mean, which takes no training: at every sigma of the certificates, and at the mean
    sigma of its pretraining. A model without a denoiser is not checked.

    Raises:
        ValueError: It has not.
    """
    if model.denoiser is None or args.allow_untrained:
        return
    samples = [sample for sample in map(images.__getitem__, rows[:_NUM_CHECKED]) if sample["is_valid"]]
    if not samples:
        return
    pixels = torch.stack([sample["pixel_values"] for sample in samples]).to(model.device)
    found = {
        sigma: denoising_figures(model.denoiser, pixels, sigma)
        for sigma in [*args.sigmas, parse_sigma(model.config.pretraining_sigma).mean]
    }
    lines = {
        sigma: f"at sigma {sigma:g} the denoised images have {denoised:.1f} dB, the noisy ones {noisy:.1f} dB and the"
        f" means of their patches {averages:.1f} dB"
        for sigma, (denoised, noisy, averages) in found.items()
    }
    if all(denoised <= max(noisy, averages) for denoised, noisy, averages in found.values()):
        raise ValueError(
            f"the denoiser of {args.model_name_or_path} removes no noise, so it is untrained:"
            f" {'; '.join(lines.values())} (PSNR of {plural(len(samples), 'image')}). Pretrain it first, or pass"
            " --allow_untrained"
        )
    for sigma in args.sigmas:
        denoised, noisy, _ = found[sigma]
        if denoised <= noisy:
            logger.warning(f"The denoiser does harm: {lines[sigma]} (PSNR)")


@torch.no_grad()
def denoising_figures(denoiser: NIMForPreTraining, pixels: torch.Tensor, sigma: float) -> list[float]:
    """Return the peak signal-to-noise ratios in dB of denoised images, noisy images, and the means of their patches.

    Args:
        denoiser: The denoiser.
        pixels: Normalized images of shape `(batch, channels, height, width)`.
        sigma: Scale of the noise in units of 0..255 pixels.
    """
    outputs = denoiser(pixels, sigma=sigma, generator=torch.Generator(pixels.device).manual_seed(0), return_loss=False)
    noisy, clean, std = outputs.noisy_pixel_values.float(), pixels.float(), denoiser.config.image_std
    averages = torch.nn.functional.avg_pool2d(noisy, denoiser.config.patch_shape)
    averages = torch.nn.functional.interpolate(averages, noisy.shape[-2:], mode="nearest")
    shown = (outputs.denoised_pixel_values.float(), noisy, averages)
    return [float(psnr(denoiser.clamp_pixels(one), clean, std).mean()) for one in shown]


def seconds_per_draw(
    model: NIMForRobustImageClassification, images: EvaluationImages, row: int, args: argparse.Namespace
) -> float:
    """Measure the time of one noise draw on one image."""
    pixels = images[row]["pixel_values"].to(model.device)[None]
    batch_size = args.per_device_eval_batch_size or default_batch_size(model.device)

    def seconds(num_draws: int) -> float:
        started = time.perf_counter()
        generator = torch.Generator(model.device).manual_seed(0)
        model.predict_smoothed(pixels, args.sigmas[0], num_draws, generator=generator, max_batch_size=batch_size)
        return (time.perf_counter() - started) / num_draws

    seconds(1)
    single = seconds(1)
    # A large model on a CPU takes long for a full pass, and one draw tells its speed as well.
    return single if single > _SLOW else seconds(batch_size)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the command line. Return what `results.json` holds, on the main process."""
    args = parse_arguments(argv)
    with hold_folder(args.output_dir, "--resume"):
        return certify(args)


def certify(args: argparse.Namespace) -> dict[str, Any]:
    """Certify a data set. Return what `results.json` holds, on the main process."""
    accelerator = measuring_accelerator()
    loaded: Any = NIMForRobustImageClassification.from_pretrained(
        args.model_name_or_path,
        dtype=getattr(torch, args.dtype),
        cache_dir=args.cache_dir,
        token=args.token,
        output_loading_info=True,
    )
    model, info = loaded
    if not args.allow_untrained:
        check_trained(args.model_name_or_path, model, info)
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
    check_denoiser(model, images, rows, args)
    if accelerator.is_main_process:
        start_records(
            args.output_dir, settings, KEYS, args.resume, names=("dataset",), meanings={"model_hash": OTHER_MODEL}
        )
        check_images(args.output_dir, images, number_of)
    tasks = [(row, sigma) for row in rows for sigma in args.sigmas]
    try:
        own = own_tasks(tasks, model, images, args, accelerator)
        catch_postponed()
        with progress_bar(len(own) * (args.n0 + args.n), accelerator) as bar:
            for done, (row, sigma) in enumerate(own, start=1):
                sample = images[row]
                record = certify_image(model, sample, sigma, number_of[sample["labels"]], args, bar.update)
                append_record(args.output_dir, accelerator.process_index, record)
                # Broken images take no draws, sequential certificates fewer.
                bar.update(done * (args.n0 + args.n) - bar.n)
        accelerator.wait_for_everyone()
    except KeyboardInterrupt as error:
        num_done = len(read_records(args.output_dir, KEYS))
        kept = f"{num_done:,} of {plural(len(tasks), 'certificate')} are kept in {args.output_dir}"
        raise Interrupted.of(error, kept, ["--resume"]) from None
    results = write_results(args, settings, tasks, accelerator) if accelerator.is_main_process else {}
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return results


def progress_bar(num_draws: int, accelerator: Any) -> Any:
    """Return a bar of noise draws, on the main process."""
    name = "certifying" + (", this process's part" if accelerator.num_processes > 1 else "")
    disable = not accelerator.is_main_process
    return require("tqdm").tqdm(total=num_draws, desc=name, unit="draw", unit_scale=True, disable=disable)


def own_tasks(
    tasks: list[tuple[int, float]],
    model: NIMForRobustImageClassification,
    images: EvaluationImages,
    args: argparse.Namespace,
    accelerator: Any,
) -> list[tuple[int, float]]:
    """Return this process's pending tasks, and say what all of them cost."""
    accelerator.wait_for_everyone()
    done = {(record["row"], record["sigma"]) for record in read_records(args.output_dir, KEYS)}
    # Nobody appends before everybody has read what is done.
    accelerator.wait_for_everyone()
    pending = [task for task in tasks if task not in done]
    text = (
        f"{plural(len(tasks) // len(args.sigmas), 'image')} at {plural(len(args.sigmas), 'sigma')}:"
        f" {len(tasks) - len(pending):,} of {plural(len(tasks), 'certificate')} done;"
        f" {plural(accelerator.num_processes, 'process')} on {accelerator.device.type}"
    )
    if pending and accelerator.is_main_process:
        draws = len(pending) * (args.n0 + args.n)
        minutes = draws * seconds_per_draw(model, images, pending[0][0], args) / accelerator.num_processes / 60
        text += (
            f"; {len(pending):,} x {args.n0 + args.n:,} = {draws:,} noisy images to classify, {_duration(minutes)}"
            + (" or less, as --sequential stops early" if args.sequential else "")
        )
    accelerator.print(text)
    return pending[accelerator.process_index :: accelerator.num_processes]


def _duration(minutes: float) -> str:
    if minutes < 1:
        return "less than a minute"
    return f"about {plural(round(minutes), 'minute')}" if minutes < 120 else f"about {minutes / 60:.0f} hours"


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
