# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Measure the robustness of an image classifier by a suite of attacks that does not flatter random defenses.

    transformers-nim evaluate --model_name_or_path MODEL --dataset_name DATA --output_dir DIR
    ... --suite full --eps 4 --sigmas off 0 25 50 75 100 --eps_grid 1 2 4
    ... --num_samples 16                                     # the vote of 16 noise draws is the defense
    ... --budget_minutes 60                                  # as many images and draws as fit
    ... --surrogates undefended=MODEL2 adversarial=MODEL3    # models from which attacks are transferred
    transformers-nim evaluate --compare A/results.json B/results.json [...]

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
import math
from typing import Any

from ..data.evaluation_set import EvaluationSet, add_split_arguments, load_split
from ..model.noise import FROM_CONFIG
from ..robustness import RobustnessReport, render
from ..robustness.classifiers import make_subject
from ..robustness.evaluate import evaluate
from ..robustness.evaluation import Defense, EvaluationOptions
from ..robustness.protocol import AUTO_PRECISION, BUDGETS, FULL_PRECISION, PRECISIONS
from ..robustness.runner import describe_progress
from ..robustness.time_budget import TooLittleTimeError
from ..utils.cli import check_arguments, make_parser, run_command
from ..utils.interruption import Interrupted
from ..utils.output_folder import hold_folder
from ..utils.processes import MEASURING_PACKAGES, measuring_accelerator
from .comparison import compare_results


# Parts of the attack budget that the command line can change.
_BUDGET = {
    "steps": "steps of the gradient attacks",
    "num_draws": "noise draws over which gradients are averaged",
    "restarts": "runs with each loss",
    "num_queries": "predictions that Square may ask for",
    "num_evaluations": "fresh noise draws with which a finished image is classified, at least 11",
    "num_check_images": "images of the checks with large eps, and of the gradient probes",
}


def sigma_argument(text: str) -> float | str | None:
    """Return a sigma of the command line: a number, `None` for off, or `"config"`."""
    if text == FROM_CONFIG:
        return text
    if text == "off":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
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
    parser.add_argument("--compare", nargs="+", metavar="RESULTS",
                        help="show the results of several models as a table, the differences of two, and do nothing"
                        " else: results.json files, also of certificates, or folders with such files")  # fmt: skip
    model = parser.add_argument_group("model and data")
    model.add_argument("--model_name_or_path", help="an image classifier of transformers")
    model.add_argument("--surrogates", nargs="+", metavar="NAME=MODEL",
                       help="other models of the same input size, from which attacks are transferred")  # fmt: skip
    add_split_arguments(model)
    model.add_argument("--max_eval_samples", type=int, help="images (default: the suite's)")
    attack = parser.add_argument_group("attacks and defense")
    attack.add_argument("--suite", choices=list(BUDGETS), default="quick", help="how much")
    attack.add_argument("--norm", choices=("Linf", "L2"), default="Linf", help="norm of eps")
    attack.add_argument("--eps", type=float,
                        help="main radius, in units of 0..255 pixels (default: 8 for Linf, 128 for L2)")  # fmt: skip
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
    attack.add_argument("--attack_precision", choices=[AUTO_PRECISION, *PRECISIONS], default=FULL_PRECISION,
                        help="precision in which attacks on a random defense search: auto is bf16 where the device"
                        " computes in it. All else is float32: accuracies, attacks on what is not random, and checks"
                        " of gradients")  # fmt: skip
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
    if FROM_CONFIG in (args.sigmas or []):
        parser.error(f"--sigmas takes numbers and off, got {FROM_CONFIG}, which is for --sigma")
    if args.min_clean_accuracy is not None and not 0 <= args.min_clean_accuracy <= 1:
        parser.error(f"--min_clean_accuracy must be from 0 to 1, got {args.min_clean_accuracy:g}")
    args.surrogates = args.surrogates or []
    names = [pair.split("=", 1)[0] for pair in args.surrogates]
    for name, pair in zip(names, args.surrogates):
        if "=" not in pair:
            parser.error(f"--surrogates takes NAME=MODEL, got {pair!r}")
        if names.count(name) > 1:
            parser.error(f"--surrogates names {name} twice")
    try:
        args.options = make_options(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def make_options(args: argparse.Namespace) -> EvaluationOptions:
    """Return what the command line says of the evaluation.

    Raises:
        ValueError: A choice is unknown or a number out of range.
    """
    same = ("output_dir", "suite", "norm", "eps", "eps_grid", "sigma", "sigmas", "num_samples", "vote",
            "attack_precision", "budget_minutes", "resume", "seed", "rows_per_pass", "labels_by_index")  # fmt: skip
    budget = {name: getattr(args, name) for name in _BUDGET if getattr(args, name) is not None}
    if args.max_eval_samples is not None:
        budget["num_images"] = args.max_eval_samples
    return EvaluationOptions(
        **{name: getattr(args, name) for name in same},
        attacks=args.attacks or (),
        budget=budget,
        with_autoattack=not args.no_autoattack,
        batch_size=args.per_device_eval_batch_size,
    )


def main(argv: list[str] | None = None) -> RobustnessReport | str | None:
    """Run the command line. Return the report on the main process, or the comparison of several."""
    args = parse_arguments(argv)
    if args.compare:
        text = compare_results(args.compare)
        print(text)
        return text
    with hold_folder(args.output_dir, "--resume"):
        return measure(args)


def measure(args: argparse.Namespace) -> RobustnessReport | None:
    """Evaluate a model. Return the report on the main process."""
    accelerator = measuring_accelerator()
    options: EvaluationOptions = args.options
    source = {"device": accelerator.device, "cache_dir": args.cache_dir, "token": args.token}
    subject = make_subject(args.model_name_or_path, **source)
    # Options for another kind of model are refused before the data are loaded.
    Defense.of(subject, options)
    pairs: list[Any] = [pair.split("=", 1) for pair in args.surrogates]
    surrogates = {name: make_subject(path, **source) for name, path in pairs}
    images = EvaluationSet.from_data(
        load_split(args),
        subject.model,
        subject.image_processor,
        options.attack_budget().num_images,
        options.labels_by_index,
    ).of_split(args.split, args.dataset_config_name)
    try:
        report = evaluate(subject, images, options, surrogates, accelerator, accelerator.print)
    except TooLittleTimeError as error:
        raise ValueError(error.as_options()) from error
    except KeyboardInterrupt as error:
        raise Interrupted.of(error, describe_progress(args.output_dir), ["--resume"]) from None
    if report is not None:
        written = [report.save(args.output_dir), *report.plot(args.output_dir)]
        print(f"\n{render(report, args.min_clean_accuracy)}\n")
        print(f"{', '.join(path.name for path in written)}: {args.output_dir}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return report


if __name__ == "__main__":
    run_command(main)
