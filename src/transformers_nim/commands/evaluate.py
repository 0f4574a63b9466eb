# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Measure the robustness of an image classifier by a suite of attacks that does not flatter random defenses.

    transformers-nim evaluate --model_name_or_path MODEL --dataset_name DATA --output_dir DIR
    ... --suite full --eps 4 --sigmas off 0 25 50 75 100 --eps_grid 1 2 4
    ... --num_samples 16                                     # the vote of 16 noise draws is the defense
    ... --budget_minutes 60                                  # as many images and draws as fit
    ... --surrogates undefended=MODEL2 adversarial=MODEL3    # models from which attacks are transferred
    transformers-nim evaluate --compare A/results.json B/results.json

Writes to `--output_dir`: `results.json` (every prediction of every image), `tradeoff.png`, `eps_curve.png` and
`examples.png`. A killed run goes on with `--resume`, with any number of processes; no attack runs twice. Figures
depend on the seed, not on processes or batches.

eps and sigma are in units of 0..255 pixels. Any image classifier of transformers can be measured; only a
NIMForRobustImageClassification has a sigma.

RobustBench takes no models with random answers, so figures of a defense with noise have no counterpart there. Models
without a defense, and sigma off or 0, answer equal images equally. They also meet targeted attacks (APGD-T) and, with
`--suite full` where pyautoattack is installed, AutoAttack itself, whose row compares with RobustBench's.
"""

import argparse
import hashlib
import importlib.util
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.modeling_utils import PreTrainedModel

from ..attacks import PixelClassifier, attack_options
from ..data.evaluation_set import EvaluationSet, add_split_arguments, load_split
from ..data.loading import ImageData
from ..model.noise import FROM_CONFIG
from ..robustness import RobustnessReport, compare, render
from ..robustness.checks import make_report
from ..robustness.classifiers import classifier_maker, has_defense, load_with_processor, model_hash
from ..robustness.protocol import (
    BUDGETS,
    DEFAULT_PRECISION,
    HEADLINE,
    OLDER_SETTINGS,
    PRECISIONS,
    AttackBudget,
    AttackConfiguration,
    ModelFacts,
    Suite,
)
from ..robustness.runner import KEYS, Runner, kept_path
from ..robustness.time_budget import fit, seconds_per_pass
from ..utils.cli import check_arguments, make_parser, run_command
from ..utils.extras import require
from ..utils.processes import MEASURING_PACKAGES, measuring_accelerator
from ..utils.records import replace_file, start_records
from ..utils.text_table import plural, sigma_key
from ..utils.versions import VERSION, package_versions


PLAN = "plan.json"
# Parts of the attack budget that the command line can change.
_BUDGET = {
    "steps": "steps of the gradient attacks",
    "num_draws": "noise draws over which gradients are averaged",
    "restarts": "runs with each loss",
    "num_queries": "predictions that Square may ask for",
    "num_evaluations": "fresh noise draws with which a finished image is classified, at least 11",
    "num_check_images": "images of the checks with large eps, and of the gradient probes",
}
# Arguments that are settings of the results under their own names.
_SETTINGS = ("dataset_config_name", "split", "labels_by_index", "suite", "norm", "eps", "seed", "rows_per_pass",
             "attack_precision")  # fmt: skip


def sigma_argument(text: str) -> float | str | None:
    """Return a sigma of the command line: a number, `None` for off, or `"config"`."""
    if text == FROM_CONFIG:
        return text
    if text == "off":
        return None
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f'sigma must be "off" or a number of at least 0, got {text!r}')
    return value


def make_arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = make_parser(
        __doc__,
        "--model_name_or_path MODEL --dataset_name DATA --output_dir DIR",
        MEASURING_PACKAGES,
        "transformers_nim.commands.evaluate",
    )
    parser.add_argument("--compare", nargs=2, metavar="RESULTS", help="compare two results.json, and do nothing else")
    model = parser.add_argument_group("model and data")
    model.add_argument("--model_name_or_path", help="an image classifier of transformers")
    model.add_argument("--surrogates", nargs="+", metavar="NAME=MODEL",
                       help="other models of the same input size, from which attacks are transferred")  # fmt: skip
    add_split_arguments(model)
    model.add_argument("--max_eval_samples", type=int, help="images (default: the suite's)")
    attack = parser.add_argument_group("attacks and defense")
    attack.add_argument("--suite", choices=list(BUDGETS), default="quick", help="how much")
    attack.add_argument("--norm", choices=("Linf", "L2"), default="Linf", help="norm of eps")
    attack.add_argument("--eps", type=float, default=8.0, help="main radius, in units of 0..255 pixels")
    attack.add_argument("--eps_grid", type=float, nargs="*", help="further radii (default: a quarter and a half)")
    attack.add_argument("--sigma", type=sigma_argument, default=FROM_CONFIG,
                        help="main sigma of the defense; config is that of the model's config")  # fmt: skip
    attack.add_argument("--sigmas", type=sigma_argument, nargs="*",
                        help="further ones, for the trade-off curve (default: off 0 25 50 75 100)")  # fmt: skip
    attack.add_argument("--num_samples", type=int,
                        help="noise draws that vote on each prediction (default: the config's, mostly 1). The vote is"
                        " what is attacked and counted: one shot, ten tries and known noise are those of votes, and a"
                        " gradient averages over num_draws // num_samples votes, at least one")  # fmt: skip
    attack.add_argument("--vote", choices=("mean", "majority"),
                        help="how: by mean probability, or for one class each (default: the config's)")  # fmt: skip
    attack.add_argument("--attacks", nargs="+", help="further attacks by their registered names")
    for name, text in _BUDGET.items():
        attack.add_argument(f"--{name}", type=int, help=f"{text} (default: the suite's)")
    attack.add_argument("--attack_precision", choices=list(PRECISIONS), default=DEFAULT_PRECISION,
                        help="precision in which attacks on a random defense search: bf16 is faster on many devices,"
                        " and approximate. All else is float32: accuracies, attacks on what is not random, checks of"
                        " gradients, and the timing for --budget_minutes")  # fmt: skip
    attack.add_argument("--no_autoattack", action="store_true", help="leave AutoAttack, of pyautoattack, out")
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", help="folder for results, shared by all processes")
    run.add_argument("--seed", type=int, default=0, help="seed of attacks and noise")
    run.add_argument("--resume", action="store_true", help="go on with the run in --output_dir, if there is one")
    run.add_argument("--budget_minutes", type=float, help="time there is; what has to be cut for it is said")
    run.add_argument("--per_device_eval_batch_size", type=int, default=8, help="images attacked together")
    run.add_argument("--rows_per_pass", type=int, default=64,
                     help="noisy images per pass through the network; one of the run's settings, as rounding depends"
                     " on it")  # fmt: skip
    run.add_argument("--min_clean_accuracy", type=float,
                     help="clean accuracy, in [0, 1], that the recommended sigma must keep")  # fmt: skip
    return parser


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line, or exit with an error."""
    parser = make_arguments()
    args = parser.parse_args(argv)
    if args.compare:
        return args
    required = ("model_name_or_path", "dataset_name", "output_dir")
    check_arguments(
        parser, args, required, ("max_eval_samples", "per_device_eval_batch_size", "rows_per_pass", "num_samples")
    )
    args.surrogates, args.attacks = args.surrogates or [], args.attacks or []
    if args.eps_grid is None:
        args.eps_grid = [args.eps / 4, args.eps / 2]
    if args.sigmas is None:
        args.sigmas = [None, 0.0, 25.0, 50.0, 75.0, 100.0]
    if FROM_CONFIG in args.sigmas:
        parser.error(f"--sigmas takes numbers and off, got {FROM_CONFIG}, which is for --sigma")
    names = [pair.split("=", 1)[0] for pair in args.surrogates]
    for name, pair in zip(names, args.surrogates):
        if "=" not in pair:
            parser.error(f"--surrogates takes NAME=MODEL, got {pair!r}")
        if names.count(name) > 1:
            parser.error(f"--surrogates names {name} twice")
    for name in args.attacks:
        try:
            attack_options(name)
        except ValueError as error:
            parser.error(str(error))
        if name in ("transfer", "autoattack"):
            parser.error(f"--attacks {name}: it is run by {'--surrogates' if name == 'transfer' else '--suite full'}")
        if name.startswith("torchattacks_") and args.norm != "Linf":
            parser.error(f"--attacks {name} knows the norm Linf alone, not {args.norm}")
    return args


def main_sigma(args: argparse.Namespace, model: PreTrainedModel) -> float | None:
    """Return the sigma that the headline is about.

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


def predictor(args: argparse.Namespace, model: PreTrainedModel, sigmas: Sequence[float | None]) -> tuple[int, str]:
    """Return how many noise draws a prediction combines, and by which vote.

    Raises:
        ValueError: A vote was asked for, and there is no noise or a single draw.
    """
    if not any(sigmas):
        if args.num_samples not in (None, 1) or args.vote is not None:
            raise ValueError("--num_samples and --vote are for a defense with a sigma above 0: leave them out")
        return 1, "mean"
    num_samples = model.config.num_samples if args.num_samples is None else args.num_samples
    if num_samples == 1:
        if args.vote is not None:
            raise ValueError(f"--vote {args.vote} is for several noise draws per prediction; add --num_samples 16")
        return 1, "mean"
    return num_samples, args.vote or model.config.vote


@dataclass(frozen=True)
class Subject:
    """The model that is evaluated, and those from which attacks are transferred.

    Attributes:
        model: The model.
        processor: Its image processor.
        sigma: The main sigma of the defense in units of 0..255 pixels; `None` for a model without one.
        sigmas: Further ones.
        num_samples: Noise draws that a prediction combines.
        vote: How it combines them, `"mean"` or `"majority"`.
        make_classifier: The model as attacks take it.
        surrogates: Other models by name.
        surrogate_hashes: Their hashes by name.
    """

    model: PreTrainedModel
    processor: Any
    sigma: float | None
    sigmas: list[float | None]
    num_samples: int
    vote: str
    make_classifier: Callable[[float | None, str, bool], PixelClassifier]
    surrogates: Mapping[str, PixelClassifier]
    surrogate_hashes: Mapping[str, str]

    @property
    def classifier(self) -> PixelClassifier:
        """The defense at its main sigma."""
        return self.make_classifier(self.sigma, "full", False)

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        names: Mapping[Any, str] = self.model.config.id2label or {}
        return [str(names[index]) for index in range(len(names))]


def load_subject(args: argparse.Namespace, device: torch.device) -> Subject:
    """Load the model and its surrogates.

    Raises:
        ValueError: See [`main_sigma`] and [`predictor`]; or the classes of a surrogate are not those of the model.
    """
    source = {"cache_dir": args.cache_dir, "token": args.token}
    model, processor = load_with_processor(args.model_name_or_path, device, **source)
    sigma = main_sigma(args, model)
    # The defense switched off belongs to every grid: a check needs it.
    sigmas = list(dict.fromkeys([*args.sigmas, None])) if has_defense(model) else []
    num_samples, vote = predictor(args, model, [sigma, *sigmas])
    surrogates, hashes = {}, {}
    for name, path in (pair.split("=", 1) for pair in args.surrogates):
        other, other_processor = load_with_processor(path, device, **source)
        if other.config.num_labels != model.config.num_labels or (
            other.config.label2id != model.config.label2id and not args.labels_by_index
        ):
            raise ValueError(
                f"the classes of the surrogate {name} are not those of the model; if they are, in the same order, pass"
                " --labels_by_index"
            )
        hashes[name] = model_hash(other)
        surrogates[name] = classifier_maker(other, other_processor, args.seed)(None, "full", False)
    make_classifier = classifier_maker(model, processor, args.seed, num_samples=num_samples, vote=vote)
    return Subject(model, processor, sigma, sigmas, num_samples, vote, make_classifier, surrogates, hashes)


def chosen_budget(args: argparse.Namespace) -> AttackBudget:
    """Return the suite's attack budget with the changes of the command line."""
    changes = {name: getattr(args, name) for name in _BUDGET if getattr(args, name) is not None}
    if args.max_eval_samples is not None:
        changes["num_images"] = args.max_eval_samples
    return replace(BUDGETS[args.suite], **changes)


def make_suite(args: argparse.Namespace, subject: Subject, images: EvaluationSet, budget: AttackBudget) -> Suite:
    """Return the attacks of the command line.

    Raises:
        ValueError: A surrogate takes other images; or attacks on a random defense shall search in another precision,
            and there is no such attack.
    """
    first = images.read(images.images[0].row).to(subject.model.device)
    for name, surrogate in subject.surrogates.items():
        try:
            surrogate(first[None])
        except ValueError as error:
            raise ValueError(f"the surrogate {name} does not take the model's images: {error}") from error
    has_patches = subject.classifier.patch_shape is not None
    facts = ModelFacts(subject.sigma, subject.sigmas, len(subject.classes), has_patches, tuple(first.shape))
    has_autoattack = not args.no_autoattack and importlib.util.find_spec("pyautoattack") is not None
    suite = Suite(
        args.suite, replace(budget, num_images=len(images.images)), facts, args.eps, args.eps_grid, args.norm,
        list(subject.surrogates), args.rows_per_pass, has_autoattack and args.suite == "full", args.attacks,
        subject.num_samples,
    )  # fmt: skip
    if args.attack_precision != DEFAULT_PRECISION and all(one.is_deterministic for one in suite.configurations()):
        advice = ", or pass a --sigma above 0" if has_defense(subject.model) else ""
        raise ValueError(
            f"--attack_precision {args.attack_precision} is for attacks on a random defense, and here is none (sigma"
            f" {sigma_key(subject.sigma)}): leave it out{advice}"
        )
    return suite


def fit_time(
    args: argparse.Namespace, subject: Subject, images: EvaluationSet, suite: Suite, accelerator: Any
) -> tuple[Suite, list[str]]:
    """Cut the attack budget to the time there is, as the main process measures it.

    Returns:
        The suite with its budget, and sentences that say what was cut.

    Raises:
        ValueError: Nothing fits, or the run that goes on was made for another time or budget.
    """
    if args.budget_minutes is None:
        return suite, []
    path = Path(args.output_dir) / PLAN
    asked = {"strength": asdict(suite.budget), "minutes": args.budget_minutes}
    if accelerator.is_main_process and not (args.resume and path.exists()):
        accelerator.print("timing the model, to see what fits into the time")
        first = images.read(images.images[0].row).to(accelerator.device)
        num_draws = suite.budget.num_draws
        make = classifier_maker(subject.model, subject.processor, args.seed)
        seconds = seconds_per_pass(make, first, subject.sigma, num_draws, args.rows_per_pass)
        budget, cut = fit(suite, seconds, accelerator.num_processes, args.budget_minutes)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps({"asked": asked, "strength": asdict(budget), "cut": cut}, indent=2) + "\n")
    accelerator.wait_for_everyone()
    # Timing differs from start to start: a run that goes on keeps its plan.
    plan = json.loads(path.read_text())
    if plan["asked"] != asked:
        raise ValueError(
            f"{path} was made for {plan['asked']}, and this run asks for {asked}; resume with the options of then, or"
            " choose another --output_dir"
        )
    return replace(suite, budget=AttackBudget(**plan["strength"])), plan["cut"]


def make_settings(
    args: argparse.Namespace, subject: Subject, data: ImageData, images: EvaluationSet, budget: AttackBudget
) -> dict[str, Any]:
    """Return what decides the figures; a run goes on with the same settings only."""
    identities = json.dumps([asdict(image) for image in images.images])
    # Where a folder lies on this machine is nobody's business: results are published.
    path, classifier = Path(args.model_name_or_path), subject.classifier
    return {name: getattr(args, name) for name in _SETTINGS} | {
        "model": path.resolve().name if path.is_dir() else args.model_name_or_path,
        "model_class": type(subject.model).__name__,
        "model_hash": model_hash(subject.model),
        "num_parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        "dataset": data.name,
        "dataset_images": len(data.train),
        "sigma": subject.sigma,
        "sigmas": list(dict.fromkeys([subject.sigma, *subject.sigmas])),
        "num_samples": subject.num_samples,
        "vote": subject.vote,
        "surrogates": subject.surrogate_hashes,
        "images": hashlib.sha256(identities.encode()).hexdigest()[:16],
        "image_processor": {"mean": list(classifier.image_mean), "std": list(classifier.image_std)},
        "torch": torch.__version__,
        "transformers_nim": VERSION,
        "strength": asdict(budget),
        "dtype": "float32",
    }


def run_attacks(
    args: argparse.Namespace,
    subject: Subject,
    images: EvaluationSet,
    planned: Sequence[AttackConfiguration],
    budget: AttackBudget,
    accelerator: Any,
) -> list[AttackConfiguration]:
    """Run this process's pending attacks, with a progress bar. Return the attack configurations that were run."""
    parts = subject.model, subject.processor, args.seed
    make_approximate = classifier_maker(*parts, PRECISIONS[args.attack_precision], subject.num_samples, subject.vote)
    runner = Runner(
        subject.make_classifier, images, planned, budget, args.output_dir, args.seed, subject.surrogates,
        keep_images=[HEADLINE], batch_size=args.per_device_eval_batch_size, rows_per_pass=args.rows_per_pass,
        device=accelerator.device, process_index=accelerator.process_index, num_processes=accelerator.num_processes,
        wait=accelerator.wait_for_everyone, make_approximate=make_approximate, num_samples=subject.num_samples,
        make_probed=classifier_maker(*parts, num_samples=subject.num_samples),
    )  # fmt: skip
    pending = runner.pending_cost()
    accelerator.print(
        f"{plural(len(images.images), 'image')}, {plural(len(planned), 'attack configuration')},"
        f" {plural(accelerator.num_processes, 'process')} on {accelerator.device.type};"
        f" {plural(round(pending), 'pass')} to do (one with a gradient counts as two)"
    )
    with require("tqdm").tqdm(
        total=math.floor(pending) + 1,
        desc="attacking, this process's part",
        unit="pass",
        unit_scale=True,
        disable=not accelerator.is_main_process,
    ) as bar:
        runner.on_cost = bar.update
        return runner.run()


def left_out(
    args: argparse.Namespace,
    run: Sequence[AttackConfiguration],
    planned: Sequence[AttackConfiguration],
    images: EvaluationSet,
) -> list[str]:
    """Return sentences that name the parts of the protocol that were not run, and why."""
    sentences = [f"{one.name}: no gradient flows from the logits to the pixels" for one in planned if one not in run]
    if not args.surrogates:
        sentences.append(
            "transfer from an undefended and from an adversarially trained model: none was given (--surrogates)"
        )
    if not any(one.attack == "autoattack" for one in planned):
        what = "AutoAttack on fixed noise, as a cross-check" if planned[0].attack_sigma else "AutoAttack itself"
        sentences.append(f"{what}: only the full suite runs it, with pyautoattack installed and no --no_autoattack")
    if not planned[0].attack_sigma and not any(one.attack == "apgd_t" for one in planned):
        sentences.append("APGD-T: its loss needs at least 4 classes")
    if args.suite == "quick":
        sentences.append("the whole grid of sigma and eps, three restarts and 100 steps: --suite full")
    if images.undecodable:
        sentences.append(
            f"{len(images.undecodable)} images that cannot be decoded: rows {list(images.undecodable[:10])}"
        )
    return sentences


def make_samples(
    report: RobustnessReport, images: EvaluationSet, subject: Subject, folder: Path, num: int = 6
) -> list[dict[str, Any]]:
    """Return images before and after the headline attack, noisy and denoised, for [`plot_examples`]."""
    model, sigma, classifier = subject.model, subject.sigma, subject.classifier
    samples: list[dict[str, Any]] = []
    for record in report.images:
        path = kept_path(folder, HEADLINE, record["row"])
        if not path.exists() or len(samples) == num:
            continue
        adversarial = torch.from_numpy(np.load(path, allow_pickle=False))
        shown = {"clean": images.read(record["row"]), "adversarial": adversarial}
        sample: dict[str, Any] = {"row": record["row"], "label": record["label"], "noisy": None, "denoised": None}
        for name in list(shown):
            options: dict[str, Any] = {"sigma": sigma} if has_defense(model) else {}
            if sigma is not None:
                generator = torch.Generator(model.device).manual_seed(record["row"])
                options |= {"num_samples": subject.num_samples, "vote": subject.vote}
                options |= {"generator": [generator], "output_draws": True}
            with torch.no_grad():
                output = model(classifier.normalize(shown[name])[None].to(model.device), **options)
            sample[f"{name}_prediction"] = int(output.logits.argmax())
            if name == "adversarial" and sigma is not None:
                shown["noisy"] = classifier.to_pixels(output.noisy_pixel_values[0, 0])
                shown["denoised"] = classifier.to_pixels(output.denoised_pixel_values[0, 0])
        sample |= {name: pixels.cpu().clamp(0, 1).permute(1, 2, 0).numpy() for name, pixels in shown.items()}
        samples.append(sample)
    return samples


def write_report(report: RobustnessReport, images: EvaluationSet, subject: Subject, args: argparse.Namespace) -> None:
    """Write results and pictures, and print the tables."""
    output_dir = Path(args.output_dir)
    report.samples = make_samples(report, images, subject, output_dir)
    written = [report.save(output_dir), *report.plot(output_dir)]
    print(f"\n{render(report, args.min_clean_accuracy)}\n")
    print(f"{', '.join(path.name for path in written)}: {output_dir}")


def main(argv: list[str] | None = None) -> RobustnessReport | str | None:
    """Run the command line. Return the report on the main process, or the comparison of two."""
    args = parse_arguments(argv)
    if args.compare:
        text = compare(*(RobustnessReport.load(path) for path in args.compare))
        print(text)
        return text
    started = time.perf_counter()
    accelerator = measuring_accelerator()
    subject = load_subject(args, accelerator.device)
    data, budget = load_split(args), chosen_budget(args)
    images = EvaluationSet.from_data(data, subject.model, subject.processor, budget.num_images, args.labels_by_index)
    suite = make_suite(args, subject, images, budget)
    suite, cut = fit_time(args, subject, images, suite, accelerator)
    images = replace(images, images=images.images[: suite.budget.num_images])
    planned = suite.configurations()
    settings = make_settings(args, subject, data, images, suite.budget)
    if accelerator.is_main_process:
        measured = {**settings, "cells": [asdict(one) for one in planned]}
        start_records(args.output_dir, measured, KEYS, args.resume, OLDER_SETTINGS)
    accelerator.wait_for_everyone()
    for sentence in cut:
        accelerator.print(f"cut: {sentence}")
    run = run_attacks(args, subject, images, planned, suite.budget, accelerator)
    report = None
    if accelerator.is_main_process:
        report = make_report(
            args.output_dir, settings, run, images, left_out=left_out(args, run, planned, images), cut=cut,
            versions=package_versions() | {"threads": str(torch.get_num_threads())},
            wall_time=time.perf_counter() - started, classes=subject.classes,
        )  # fmt: skip
        write_report(report, images, subject, args)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return report


if __name__ == "__main__":
    run_command(main)
