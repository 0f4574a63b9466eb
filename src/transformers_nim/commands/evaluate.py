# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""How robust an image classifier is, by a suite of attacks that does not flatter random defenses.

    accelerate launch examples/evaluate_robustness.py --model_name_or_path MODEL --dataset_name DATA --output_dir DIR
    ... --suite full --eps 4 --sigmas off 0 25 50 75 100 --eps_grid 1 2 4
    ... --budget_minutes 60                                  # as many images and draws as fit
    ... --surrogates undefended=MODEL2 adversarial=MODEL3    # models from which attacks are transferred
    python examples/evaluate_robustness.py --compare A/results.json B/results.json

Writes to `--output_dir`: `results.json` (every answer to every image), `tradeoff.png`, `eps_curve.png` and
`examples.png`. A run that was killed goes on with `--resume`, with any number of processes; what was done stays.
Figures depend on the seed, not on processes or batches.

eps and sigma are in units of 0..255 pixels. Any image classifier of transformers can be measured; one that is not a
NIMForRobustImageClassification has no sigma.
"""

import argparse
import hashlib
import importlib.util
import json
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from .. import __version__
from ..attacks import attack_options
from ..data.evaluation_set import EvaluationSet
from ..data.loading import ImageSource
from ..robustness import RobustnessReport, compare, plot_eps_curve, plot_examples, plot_tradeoff, render
from ..robustness.checks import make_report
from ..robustness.classifiers import classifier_maker, has_defense, load_classifier, model_hash
from ..robustness.protocol import (
    BUDGETS,
    DEFAULT_PRECISION,
    HEADLINE,
    PRECISIONS,
    AttackBudget,
    AttackConfiguration,
    ModelFacts,
    Suite,
)
from ..robustness.runner import KEYS, Runner, kept_path
from ..robustness.time_budget import fit, seconds_per_pass
from ..utils.cli import make_parser
from ..utils.extras import require
from ..utils.memory import keep_freed_memory
from ..utils.processes import check_processes, train_on_cpu
from ..utils.records import replace_file, start_records
from ..utils.text_table import plural, sigma_key


PLAN = "plan.json"
FROM_CONFIG = "config"


def sigma_argument(text: str) -> float | str | None:
    """A sigma of the command line."""
    if text == FROM_CONFIG:
        return text
    if text == "off":
        return None
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f'sigma must be "off" or a number of at least 0, got {text!r}')
    return value


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, "--model_name_or_path MODEL --dataset_name DATA --output_dir DIR")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--compare", nargs=2, metavar="RESULTS", help="compare two results.json, and do nothing else")
    model = parser.add_argument_group("model and data")
    model.add_argument("--model_name_or_path", help="an image classifier of transformers")
    model.add_argument("--surrogates", nargs="+", default=[], metavar="NAME=MODEL",
                       help="other models of the same input size, from which attacks are transferred")  # fmt: skip
    model.add_argument("--dataset_name", help="a data set on the Hub, a folder (of parquet files, of images in one"
                       " folder per class, or written by save_to_disk) or a .parquet file")  # fmt: skip
    model.add_argument("--dataset_config_name", help="configuration of a data set that has several")
    model.add_argument("--split", default="test", help="split of the images (default: test)")
    model.add_argument("--max_eval_samples", type=int, help="images (default: the suite's)")
    model.add_argument("--image_column_name", help="column of images; if left out, found by its type or name")
    model.add_argument("--label_column_name", help="column of labels; if left out, found by its type or name")
    model.add_argument("--labels_by_index", action="store_true",
                       help="the data set's classes have the model's numbers, whatever their names are")  # fmt: skip
    model.add_argument("--cache_dir", help="folder for downloads")
    model.add_argument("--token", help="token for private data sets and models")
    attack = parser.add_argument_group("attacks and defense")
    attack.add_argument("--suite", choices=list(BUDGETS), default="quick", help="how much (default: quick)")
    attack.add_argument("--norm", choices=("Linf", "L2"), default="Linf", help="norm of eps (default: Linf)")
    attack.add_argument("--eps", type=float, default=8.0, help="main radius, in units of 0..255 pixels (default: 8)")
    attack.add_argument("--eps_grid", type=float, nargs="*", help="further radii (default: a quarter and a half)")
    attack.add_argument("--sigma", type=sigma_argument, default=FROM_CONFIG,
                        help="main sigma of the defense (default: the config's)")  # fmt: skip
    attack.add_argument("--sigmas", type=sigma_argument, nargs="*", default=[None, 0.0, 25.0, 50.0, 75.0, 100.0],
                        help="further ones, for the trade-off curve (default: off 0 25 50 75 100)")  # fmt: skip
    attack.add_argument("--attacks", nargs="+", default=[], help="further attacks by their registered names")
    for name, text in (
        ("steps", "steps of the gradient attacks"),
        ("num_draws", "noise draws over which gradients are averaged"),
        ("restarts", "runs with each loss"),
        ("num_queries", "predictions that Square may ask for"),
        ("num_evaluations", "fresh noise draws with which a finished image is classified, at least 11"),
        ("num_check_images", "images of the checks with large eps, and of the gradient probes"),
    ):
        attack.add_argument(f"--{name}", type=int, help=f"{text} (default: the suite's)")
    attack.add_argument("--attack_precision", choices=list(PRECISIONS), default=DEFAULT_PRECISION,
                        help="in what attacks on a random defense search: bf16 is faster on many devices, and"
                        " approximate. All else is float32: accuracies, attacks on what is not random, checks of"
                        " gradients, and the timing for --budget_minutes (default: fp32)")  # fmt: skip
    attack.add_argument("--no_autoattack", action="store_true", help="leave the cross-check by pyautoattack out")
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", help="folder for results, shared by all processes")
    run.add_argument("--seed", type=int, default=0, help="seed of attacks and noise (default: 0)")
    run.add_argument("--resume", action="store_true", help="go on with the run in --output_dir, if there is one")
    run.add_argument("--budget_minutes", type=float, help="time there is; what has to be cut for it is said")
    run.add_argument("--per_device_eval_batch_size", type=int, default=8, help="images attacked together (default: 8)")
    run.add_argument("--rows_per_pass", type=int, default=64,
                     help="noisy images per pass through the network (default: 64); part of a run's settings, as"
                     " rounding depends on it")  # fmt: skip
    run.add_argument("--min_clean_accuracy", type=float,
                     help="clean accuracy, in [0, 1], that the recommended sigma must keep")  # fmt: skip
    args = parser.parse_args(argv)
    if args.compare:
        return args
    for name in ("model_name_or_path", "dataset_name", "output_dir"):
        if getattr(args, name) is None:
            parser.error(f"--{name} is missing")
    for name in ("max_eval_samples", "per_device_eval_batch_size", "rows_per_pass"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.eps_grid is None:
        args.eps_grid = [args.eps / 4, args.eps / 2]
    for pair in args.surrogates:
        if "=" not in pair:
            parser.error(f"--surrogates takes NAME=MODEL, got {pair!r}")
    for name in args.attacks:
        try:
            attack_options(name)
        except ValueError as error:
            parser.error(str(error))
        if name in ("transfer", "autoattack"):
            parser.error(f"--attacks {name}: it is run by {'--surrogates' if name == 'transfer' else '--suite full'}")
        if name.startswith("torchattacks_") and args.norm != "Linf":
            parser.error(f"--attacks {name} knows the norm Linf alone, not {args.norm}")
    if FROM_CONFIG in args.sigmas:
        parser.error(f"--sigmas takes numbers and off, got {FROM_CONFIG}, which is for --sigma")
    return args


def chosen_budget(args: argparse.Namespace) -> AttackBudget:
    """Return the suite's attack budget with the changes of the command line."""
    names = ("steps", "num_draws", "restarts", "num_queries", "num_evaluations", "num_check_images")
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.max_eval_samples is not None:
        changes["num_images"] = args.max_eval_samples
    return replace(BUDGETS[args.suite], **changes)


def main_sigma(args: argparse.Namespace, model: Any) -> float | None:
    """The sigma that the headline is about.

    Raises:
        ValueError: The model has no defense and a sigma was asked for, or the config's sigma is random.
    """
    if not has_defense(model):
        if args.sigma not in (FROM_CONFIG, None):
            raise ValueError(f"{type(model).__name__} has no defense: leave --sigma {args.sigma:g} out")
        return None
    if args.sigma != FROM_CONFIG:
        return args.sigma
    sigma = model.config.defense_sigma
    value = sigma.get("value") if isinstance(sigma, dict) and sigma.get("type") == "constant" else sigma
    if value is not None and not isinstance(value, (int, float)):
        raise ValueError(f"the model's defense_sigma is random ({sigma}); pass --sigma, for example --sigma 50")
    return None if value is None else float(value)


def left_out(
    args: argparse.Namespace,
    run: Sequence[AttackConfiguration],
    planned: Sequence[AttackConfiguration],
    images: EvaluationSet,
) -> list[str]:
    """Rows of the protocol that were not run, and why."""
    sentences = [f"{one.name}: no gradient flows from the logits to the pixels" for one in planned if one not in run]
    if not args.surrogates:
        sentences.append(
            "transfer from an undefended and from an adversarially trained model: none was given (--surrogates)"
        )
    if not any(one.attack == "autoattack" for one in planned):
        why = "only the full suite runs it, with sigma above 0 and pyautoattack installed"
        sentences.append(f"AutoAttack on fixed noise, as a cross-check: {why}")
    if args.suite == "quick":
        sentences.append("the whole grid of sigma and eps, three restarts and 100 steps: --suite full")
    if images.undecodable:
        sentences.append(
            f"{len(images.undecodable)} images that cannot be decoded: rows {list(images.undecodable[:10])}"
        )
    return sentences


def make_samples(
    report: RobustnessReport, images: EvaluationSet, model: Any, adapter: Any, folder: Path, num: int = 6
) -> list[dict[str, Any]]:
    """Images before and after the main attack, and what the defense makes of them, for the picture of examples."""
    sigma = report.settings["sigma"]
    samples = []
    for record in report.images:
        path = kept_path(folder, HEADLINE, record["row"])
        if not path.exists() or len(samples) == num:
            continue
        clean = images.read(record["row"])
        adversarial = torch.from_numpy(np.load(path, allow_pickle=False))
        sample = {"row": record["row"], "label": record["label"], "noisy": None, "denoised": None}
        shown = {"clean": clean, "adversarial": adversarial}
        for name in list(shown):
            pixel_values = adapter.normalize(shown[name])[None].to(model.device)
            with torch.no_grad():
                if sigma is None:
                    kwargs = {"sigma": None} if has_defense(model) else {}
                    logits = model(pixel_values, **kwargs).logits
                else:
                    generator = torch.Generator(model.device).manual_seed(record["row"])
                    output = model(pixel_values, sigma=sigma, num_samples=1, generator=[generator], output_draws=True)
                    logits = output.logits
                    if name == "adversarial":
                        shown["noisy"] = adapter.to_pixels(output.noisy_pixel_values[0, 0])
                        shown["denoised"] = adapter.to_pixels(output.denoised_pixel_values[0, 0])
            sample[f"{name}_prediction"] = int(logits.argmax())
        sample |= {name: pixels.cpu().clamp(0, 1).permute(1, 2, 0).numpy() for name, pixels in shown.items()}
        samples.append(sample)
    return samples


def main(argv: list[str] | None = None) -> RobustnessReport | str | None:
    """The command line; returns, on the main process, the report."""
    args = parse_arguments(argv)
    if args.compare:
        text = compare(*(RobustnessReport.load(path) for path in args.compare))
        print(text)
        return text
    started = time.perf_counter()
    accelerate = require("accelerate")
    # Processes end at different times.
    patience = accelerate.InitProcessGroupKwargs(timeout=timedelta(weeks=4))
    accelerator = accelerate.Accelerator(cpu=train_on_cpu(), kwargs_handlers=[patience])
    check_processes(accelerator)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    device, is_main = accelerator.device, accelerator.is_main_process
    source = {"cache_dir": args.cache_dir, "token": args.token}
    model, processor = load_classifier(args.model_name_or_path, device, **source)
    sigma = main_sigma(args, model)
    # The defense switched off belongs to every grid: a check needs it.
    sigmas = [] if not has_defense(model) else list(dict.fromkeys([*args.sigmas, None]))
    make_classifier = classifier_maker(model, processor, args.seed)
    make_approximate = classifier_maker(model, processor, args.seed, PRECISIONS[args.attack_precision])
    surrogates, surrogate_hashes = {}, {}
    for pair in args.surrogates:
        name, path = pair.split("=", 1)
        other, other_processor = load_classifier(path, device, **source)
        if name in surrogates:
            raise ValueError(f"--surrogates names {name} twice")
        if other.config.num_labels != model.config.num_labels or (
            other.config.label2id != model.config.label2id and not args.labels_by_index
        ):
            raise ValueError(
                f"the classes of the surrogate {name} are not those of the model; if they are, in the same order, pass"
                " --labels_by_index"
            )
        surrogate_hashes[name] = model_hash(other)
        surrogates[name] = classifier_maker(other, other_processor, args.seed)(None, "full", False)
    data = ImageSource(
        dataset_name=args.dataset_name,
        dataset_config_name=args.dataset_config_name,
        train_split_name=args.split,
        train_val_split=0,
        image_column_name=args.image_column_name,
        label_column_name=args.label_column_name,
        **source,
    ).load(with_labels=True)
    budget = chosen_budget(args)
    images = EvaluationSet.from_data(data, model, processor, budget.num_images, args.labels_by_index)
    budget = replace(budget, num_images=len(images.images))
    first = images.read(images.images[0].row).to(device)
    for name, surrogate in surrogates.items():
        try:
            surrogate(first[None])
        except ValueError as error:
            raise ValueError(f"the surrogate {name} does not take the model's images: {error}") from error
    has_autoattack = not args.no_autoattack and importlib.util.find_spec("pyautoattack") is not None

    facts = ModelFacts(
        sigma, sigmas, model.config.num_labels, make_classifier(sigma, "full", False).patch_shape is not None,
        tuple(first.shape),
    )  # fmt: skip
    suite = Suite(
        args.suite, budget, facts, args.eps, args.eps_grid, args.norm, list(surrogates), args.rows_per_pass,
        with_autoattack=has_autoattack and args.suite == "full", further_attacks=args.attacks,
    )  # fmt: skip

    output_dir, cut = Path(args.output_dir), []
    asked = {"strength": asdict(budget), "minutes": args.budget_minutes}
    if is_main and args.budget_minutes is not None and not (args.resume and (output_dir / PLAN).exists()):
        accelerator.print("timing the model, to see what fits into the time")
        seconds = seconds_per_pass(make_classifier, first, sigma, budget.num_draws, args.rows_per_pass)
        fitted, cut = fit(suite, seconds, accelerator.num_processes, args.budget_minutes)
        output_dir.mkdir(parents=True, exist_ok=True)
        plan = {"asked": asked, "strength": asdict(fitted), "cut": cut}
        replace_file(output_dir / PLAN, json.dumps(plan, indent=2) + "\n")
    accelerator.wait_for_everyone()
    if args.budget_minutes is not None:
        # Timing differs from start to start: a run that goes on keeps its plan.
        plan = json.loads((output_dir / PLAN).read_text())
        if plan["asked"] != asked:
            raise ValueError(
                f"{output_dir / PLAN} was made for {plan['asked']}, and this run asks for {asked}; resume with the"
                " options of then, or choose another --output_dir"
            )
        budget, cut = AttackBudget(**plan["strength"]), plan["cut"]
    images = replace(images, images=images.images[: budget.num_images])
    planned = replace(suite, budget=budget).configurations()
    if args.attack_precision != DEFAULT_PRECISION and all(one.is_deterministic for one in planned):
        advice = ", or pass a --sigma above 0" if has_defense(model) else ""
        raise ValueError(
            f"--attack_precision {args.attack_precision} is for attacks on a random defense, and here is none (sigma"
            f" {sigma_key(sigma)}): leave it out{advice}"
        )
    identities = json.dumps([asdict(image) for image in images.images])
    images_hash = hashlib.sha256(identities.encode()).hexdigest()[:16]
    adapter = make_classifier(sigma, "full", False)
    normalization = {"mean": list(adapter.image_mean), "std": list(adapter.image_std)}
    names = ("dataset_config_name", "split", "labels_by_index", "suite", "norm", "eps", "seed", "rows_per_pass",
             "attack_precision")  # fmt: skip
    settings = {name: getattr(args, name) for name in names} | {
        # Where a folder lies on this machine is nobody's business: results are published.
        "model": Path(args.model_name_or_path).resolve().name
        if Path(args.model_name_or_path).is_dir()
        else args.model_name_or_path,
        "model_class": type(model).__name__,
        "model_hash": model_hash(model),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dataset": data.name,
        "dataset_images": len(data.train),
        "sigma": sigma,
        "sigmas": list(dict.fromkeys([sigma, *sigmas])),
        "surrogates": surrogate_hashes,
        "images": images_hash,
        "image_processor": normalization,
        "torch": torch.__version__,
        "transformers_nim": __version__,
        "strength": asdict(budget),
        "dtype": "float32",
    }
    if is_main:
        measured = {**settings, "cells": [asdict(one) for one in planned]}
        start_records(output_dir, measured, KEYS, args.resume, {"attack_precision": DEFAULT_PRECISION})
    accelerator.wait_for_everyone()

    runner = Runner(
        make_classifier, images, planned, budget, output_dir, args.seed, surrogates, keep_images=[HEADLINE],
        batch_size=args.per_device_eval_batch_size, device=device, process_index=accelerator.process_index,
        num_processes=accelerator.num_processes, wait=accelerator.wait_for_everyone,
        rows_per_pass=args.rows_per_pass, make_approximate=make_approximate,
    )  # fmt: skip
    pending = runner.pending_cost()
    accelerator.print(
        f"{plural(len(images.images), 'image')}, {plural(len(planned), 'attack configuration')},"
        f" {plural(accelerator.num_processes, 'process')} on {device.type}; {pending:,.0f} passes are to be done (a"
        " gradient counts as two)"
    )
    for sentence in cut:
        accelerator.print(f"cut: {sentence}")
    with require("tqdm").tqdm(
        total=math.floor(pending) + 1,
        desc="attacking, this process's part",
        unit="pass",
        unit_scale=True,
        disable=not is_main,
    ) as bar:
        runner.on_cost = bar.update
        run = runner.run()
    report = None
    if is_main:
        report = make_report(
            output_dir,
            settings,
            run,
            images,
            versions=versions(),
            wall_time=time.perf_counter() - started,
            left_out=left_out(args, run, planned, images),
            cut=cut,
            classes=[str(model.config.id2label[index]) for index in range(model.config.num_labels)],
        )
        report.save(output_dir)
        plot_tradeoff(report, output_dir / "tradeoff.png")
        plot_eps_curve(report, output_dir / "eps_curve.png")
        samples = make_samples(report, images, model, adapter, output_dir)
        if samples:
            plot_examples(samples, output_dir / "examples.png", report.classes)
        print(f"\n{render(report, args.min_clean_accuracy)}\n")
        print(f"results.json, tradeoff.png, eps_curve.png, examples.png: {output_dir}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return report


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "transformers_nim": __version__,
        "threads": str(torch.get_num_threads()),
    }
