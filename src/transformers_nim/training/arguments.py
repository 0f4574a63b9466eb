# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Define the command-line arguments that pretraining and fine-tuning share."""

import argparse
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..attacks.geometry import NORMS
from ..model.checks_nim import check_counts
from ..model.configuration_nim import NIM_SIZES, NIMConfig
from ..model.noise import SigmaDistribution, parse_sigma
from .optimization import SCHEDULES


# Optional packages that training cannot do without.
PACKAGES = ("accelerate", "datasets", "matplotlib", "tqdm")


@dataclass(frozen=True)
class PaperValues:
    """Recipe of the paper and of MAE, on ImageNet.

    Attributes:
        base_learning_rate: Learning rate for 256 images per update.
        epochs: Passes over the images.
        total_batch_size: Images per update.
    """

    base_learning_rate: float
    epochs: float
    total_batch_size: int


# By task.
PAPER = {"pretraining": PaperValues(1.5e-4, 800, 4096), "finetuning": PaperValues(5e-4, 100, 1024)}
# Images per process and pass, and the updates of an epoch that few images make it smaller for.
LARGEST_BATCH, SMALLEST_BATCH, MIN_UPDATES_PER_EPOCH = 64, 8, 12
RATE_HELP = {
    task: f"{values.base_learning_rate:g} as in the paper, for at least 256 images and at most"
    f" {values.total_batch_size}"
    for task, values in PAPER.items()
}
# In units of 0..255 pixels.
EVAL_SIGMAS = (25.0, 50.0, 75.0)
# Arguments that describe a distribution of sigma, with the type that each belongs to and what it is if left out.
_SIGMA_ARGUMENTS = {
    "gamma_concentration": ("gamma", "concentration", 25.0),
    "gamma_scale": ("gamma", "scale", 3.0),
    "sigma_low": ("uniform", "low", 0.0),
    "sigma_high": ("uniform", "high", 30.0),
    "sigma_value": ("constant", "value", 70.0),
}

# Not written to logs, results or trackers.
_SECRETS = ("token", "hub_token")
# Fields of the config that arguments of their own decide.
_TRAINED_FIELDS = {
    "pretraining_sigma": "--sigma_distribution",
    "finetuning_sigma": "--sigma_distribution",
    "denoise": "--train_on",
    "freeze_denoiser": "--train_denoiser",
}


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say where images are; their names are the fields of [`ImageSource`]."""
    add = parser.add_argument_group("data").add_argument
    add(
        "--dataset_name",
        help="data set on the Hub, a folder (of parquet files, of images in one folder per class, or written by"
        " save_to_disk) or a .parquet file",
    )
    add("--dataset_config_name", help="configuration of a data set that has several")
    add("--dataset_revision", help="version of a data set on the Hub")
    add(
        "--train_dir",
        help="folder with one folder of images per class, instead of --dataset_name; or with such folders called"
        " train, val and test, of which the last is not used",
    )
    add("--validation_dir", help="folder like --train_dir, to validate with")
    add("--train_split_name", default="train", help="split to train on")
    add("--validation_split_name", help="split to validate with; if left out, validation, valid or val, if any")
    add(
        "--train_val_split",
        type=float,
        default=0.1,
        help="share of training images to validate with if there is no split for it; 0 for none",
    )
    add("--image_column_name", help="column of images; if left out, found by type or name")
    add("--label_column_name", help="column of labels; if left out, found by type or name")
    add("--max_train_samples", type=int, help="number of training images at most, chosen at random")
    add("--max_eval_samples", type=int, help="number of validation images at most")
    add("--streaming", action="store_true", help="read images while downloading; needs --max_train_steps")
    add("--shuffle_buffer", type=int, default=10_000, help="images of a stream to draw the next one from")
    add("--num_workers", type=int, default=2, help="workers per process that decode and augment")
    add(
        "--max_decoded_gb",
        type=float,
        default=1.0,
        help="memory per process, in GB, for decoded training images (CIFAR-10 takes 0.15): if they fit, they are"
        " decoded once, not in each epoch; 0 for never",
    )
    add("--cache_dir", help="folder for downloads")
    add("--token", help="token for private data sets and models; by default that of `hf auth login`")


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that describe a new model."""
    add = parser.add_argument_group("model").add_argument
    add(
        "--config_name",
        default="base",
        help=f"size of a new model ({', '.join(NIM_SIZES)}; the paper's is base), or the name or path of a config;"
        " unused with a checkpoint",
    )
    add(
        "--config_overrides",
        metavar="FIELD=VALUE,...",
        help="fields of NIMConfig to change, such as hidden_size=256,norm_pix_loss=true",
    )


def add_augmentation_arguments(parser: argparse.ArgumentParser, crop_scale: tuple[float, float]) -> Any:
    """Add the arguments of the augmentation that both commands have, and return their group."""
    group = parser.add_argument_group("augmentation")
    add = group.add_argument
    add(
        "--crop_scale",
        type=float,
        nargs=2,
        default=crop_scale,
        metavar=("LOW", "HIGH"),
        help="smallest and largest share of a picture's area that a crop covers",
    )
    add("--horizontal_flip", type=float, default=0.5, help="probability of a flip; 0 for digits and letters")
    return group


def add_optimization_arguments(parser: argparse.ArgumentParser, task: str) -> Any:
    """Add optimizer, schedule and length, and return their group. The defaults are those of MAE and the paper."""
    values = PAPER[task]
    group = parser.add_argument_group("optimization")
    add = group.add_argument
    add(
        "--per_device_train_batch_size",
        type=int,
        help=f"images per process and pass; if left out, {LARGEST_BATCH}, or as few as leave"
        f" {MIN_UPDATES_PER_EPOCH} updates per epoch, but {SMALLEST_BATCH} at least",
    )
    add("--per_device_eval_batch_size", type=int, default=128, help="images per process and pass in validation")
    add(
        "--gradient_accumulation_steps",
        type=int,
        default=1,
        help="passes per update; images per update = batch x processes x passes, in the paper"
        f" {values.total_batch_size}",
    )
    add(
        "--num_train_epochs",
        type=float,
        default=values.epochs,
        help="passes over the training images; as in the paper",
    )
    add("--max_train_steps", type=int, help="number of updates, instead of --num_train_epochs")
    add(
        "--base_learning_rate",
        type=float,
        help=f"learning rate = this x images per update / 256; if left out, {RATE_HELP[task]}",
    )
    add("--learning_rate", type=float, help="learning rate, instead of --base_learning_rate")
    add("--weight_decay", type=float, default=0.05, help="weight decay of matrices; biases and norms have none")
    add("--lr_scheduler_type", choices=SCHEDULES, default="cosine", help="learning rate after warm-up")
    add("--warmup_ratio", type=float, default=0.05, help="share of updates that warm up; as in the paper")
    add("--num_warmup_steps", type=int, help="updates that warm up, instead of --warmup_ratio")
    add("--max_grad_norm", type=float, help="norm to clip gradients to; if left out, no clipping, as in the paper")
    add(
        "--mixed_precision",
        choices=("auto", "no", "bf16", "fp16"),
        help="auto, for CPUs only: bf16 if a benchmark of a second finds it faster than fp32; if left out, auto on a"
        " CPU, and on a GPU what `accelerate config` or the launch file says",
    )
    add("--gradient_checkpointing", action="store_true", help="save memory; takes about a third more time")
    add("--torch_compile", action="store_true", help="compile the model")
    return group


def add_run_arguments(parser: argparse.ArgumentParser) -> Any:
    """Add output, checkpoints, logs and the Hub, and return their group."""
    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--output_dir", required=True, help="folder for model, checkpoints, logs and results")
    add(
        "--overwrite_output_dir",
        action="store_true",
        help="remove the model, checkpoints and results that an earlier run has left in --output_dir",
    )
    add("--seed", type=int, default=0, help="seed of every random draw")
    add("--checkpointing_steps", default="1000", metavar="N|epoch", help="updates between checkpoints, or 'epoch'")
    add("--checkpoints_total_limit", type=int, default=2, help="number of checkpoints to keep")
    add(
        "--resume_from_checkpoint",
        metavar="PATH|latest",
        help="checkpoint to continue; 'latest' is the newest complete one, if any",
    )
    add("--eval_steps", metavar="N|epoch", help="updates between validations; if left out, one at the end")
    add("--logging_steps", type=int, default=10, help="updates between lines of log.jsonl")
    add(
        "--eval_sigmas",
        type=float,
        nargs="*",
        help="noise scales to validate at, in units of 0..255 pixels; if left out, 25, 50, 75 and that of the defense",
    )
    add("--report_to", nargs="+", default=["tensorboard"], help="trackers (tensorboard, wandb, trackio, ...) or none")
    add("--push_to_hub", action="store_true", help="upload the finished model")
    add("--hub_model_id", help="repository to push to; by default the name of output_dir")
    add("--hub_private_repo", action="store_true", help="create the repository as a private one")
    add("--hub_token", help="token for the push; by default that of `hf auth login`")
    return group


def add_sigma_arguments(group: Any, paper: str) -> None:
    """Add the distribution of sigma in training.

    Args:
        group: Group of arguments.
        paper: Distribution of the paper, in words.
    """
    add = group.add_argument
    add(
        "--sigma_distribution",
        choices=("gamma", "uniform", "constant"),
        help="distribution of each image's noise scale sigma; if this and its parameters are left out, the"
        f" checkpoint's, or without one the paper's: {paper}",
    )
    words = {
        "gamma_concentration": "gamma: concentration; mean = concentration x scale",
        "gamma_scale": "gamma: scale, in units of 0..255 pixels",
        "sigma_low": "uniform: lowest sigma, in units of 0..255 pixels",
        "sigma_high": "uniform: highest sigma, in units of 0..255 pixels",
        "sigma_value": "constant: sigma, in units of 0..255 pixels",
    }
    for name, text in words.items():
        add(f"--{name}", type=float, help=f"{text}; if left out, {_SIGMA_ARGUMENTS[name][2]:g}")


def add_attack_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of adversarial training."""
    add = parser.add_argument_group("adversarial training").add_argument
    add("--adversarial_steps", type=int, default=0, help="steps of PGD on training images; 0 for no attack")
    add("--adversarial_eps", type=float, help="radius of the attack, in x/255; if left out, 8 for Linf and 128 for L2")
    add(
        "--adversarial_norm",
        choices=NORMS,
        default="Linf",
        help="norm of the attack; L2 is what certificates are about (SmoothAdv, arXiv 1906.04584)",
    )
    add("--adversarial_step_size", type=float, help="step of the attack, in x/255; 2.5 x eps / steps by default")
    add(
        "--adversarial_warmup_ratio",
        type=float,
        default=0.0,
        help="share of updates over which eps and step rise from 0, so that a new head learns the classes first; 0 for"
        " none",
    )
    add(
        "--adversarial_through",
        choices=("defense", "classifier"),
        default="defense",
        help="attack noise, denoiser and classifier, or the classifier alone",
    )
    add(
        "--adversarial_noise",
        choices=("shared", "independent"),
        default="shared",
        help="attack under the noise that is then trained on, or under other noise, which makes a weaker attack"
        " (docs/experiments.md)",
    )


def add_draw_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of several noise draws per image, and of a denoiser that is trained along."""
    add = parser.add_argument_group("draws and denoiser").add_argument
    add(
        "--num_training_draws",
        type=int,
        default=1,
        help="noise draws per image and update, so that what is trained and attacked is their vote (SmoothAdv, arXiv"
        " 1906.04584)",
    )
    add(
        "--draw_loss",
        choices=("vote", "mean"),
        default="vote",
        help="loss of several draws: that of the vote (the mean probability), or the mean of their losses",
    )
    add(
        "--consistency_weight",
        type=float,
        default=0.0,
        help="weight of a penalty on draws that disagree with their mean (KL; arXiv 2006.04062); 0 for none",
    )
    add(
        "--consistency_entropy",
        type=float,
        default=0.0,
        help="weight, within that penalty, of the entropy of the mean, which makes the vote sure",
    )
    add(
        "--train_denoiser",
        action="store_true",
        help="train the denoiser along (the paper freezes it), since a frozen one does not lessen the effect of a"
        " perturbation",
    )
    add(
        "--denoiser_learning_rate_factor",
        type=float,
        default=0.2,
        help="learning rate of a trained denoiser, relative to the classifier's head",
    )
    add(
        "--denoiser_layer_decay",
        type=float,
        default=1.0,
        help="factor of a trained denoiser's learning rate from each of its layers to the one below",
    )
    add(
        "--denoising_weight",
        type=float,
        default=0.0,
        help="weight of the pretraining loss on clean and attacked images, which keeps a trained denoiser one; 0 for"
        " none",
    )


def check_draws(args: argparse.Namespace) -> None:
    """Check the arguments of draws and of a denoiser that is trained, with those of the images that are trained on.

    Raises:
        ValueError: One is out of range, or does not fit the images that are trained on.
    """
    check_counts(num_training_draws=args.num_training_draws)
    if args.num_training_draws > 1 and args.train_on == "clean":
        raise ValueError("num_training_draws are draws of noise, and clean images have none; pass 1")
    for name in ("consistency_weight", "consistency_entropy", "denoising_weight"):
        if not 0 <= getattr(args, name) < math.inf:
            raise ValueError(f"{name} must be at least 0, got {getattr(args, name)}")
    if args.consistency_weight and args.num_training_draws < 2:
        raise ValueError("consistency_weight compares draws; pass at least 2 --num_training_draws")
    if args.consistency_entropy and not args.consistency_weight:
        raise ValueError(
            "consistency_entropy is a part of the penalty that --consistency_weight weighs; pass that too"
        )
    if args.train_denoiser and args.train_on != "denoised":
        raise ValueError(f"--train_denoiser needs a denoiser; --train_on {args.train_on} has none")
    if args.denoising_weight and not args.train_denoiser:
        raise ValueError("denoising_weight is for a denoiser that learns; pass --train_denoiser too")


def is_sigma_left_out(args: argparse.Namespace) -> bool:
    """Return whether none of the arguments of [`add_sigma_arguments`] is given."""
    return all(getattr(args, name) is None for name in ("sigma_distribution", *_SIGMA_ARGUMENTS))


def training_sigma(args: argparse.Namespace, paper: str, saved: Mapping[str, Any] | None) -> SigmaDistribution:
    """Return the distribution of sigma in training, and set the arguments of [`add_sigma_arguments`] to it.

    Args:
        args: Arguments. If one of them is given, they describe the distribution alone.
        paper: Type of the paper's distribution, `"gamma"` or `"uniform"`.
        saved: Distribution of the checkpoint to start from, which is taken if no argument is given; None for none.

    Raises:
        ValueError: A parameter is out of range, or belongs to another distribution.
    """
    if is_sigma_left_out(args) and saved is not None:
        sigma = parse_sigma(saved)
    else:
        given = [name for name in _SIGMA_ARGUMENTS if getattr(args, name) is not None]
        kind = args.sigma_distribution or paper
        others = [name for name in given if _SIGMA_ARGUMENTS[name][0] != kind]
        if others:
            right = _SIGMA_ARGUMENTS[others[0]][0]
            raise ValueError(
                f"{others[0]} describes a {right} distribution of sigma, and this one is {kind}; pass"
                f" --sigma_distribution {right} too, or leave it out"
            )
        chosen = {name: default for name, (owner, _, default) in _SIGMA_ARGUMENTS.items() if owner == kind}
        chosen |= {name: getattr(args, name) for name in given}
        sigma = parse_sigma({"type": kind, **{_SIGMA_ARGUMENTS[name][1]: value for name, value in chosen.items()}})
    args.sigma_distribution, parameters = sigma.type, sigma.to_dict()
    for name, (owner, parameter, default) in _SIGMA_ARGUMENTS.items():
        setattr(args, name, parameters[parameter] if owner == sigma.type else default)
    return sigma


def describe_sigma(sigma: SigmaDistribution) -> str:
    """Return a distribution of sigma in words, such as `uniform 0-30`."""
    values = sigma.to_dict()
    kind = values.pop("type")
    if kind == "constant":
        return f"{values['value']:g}"
    if kind == "uniform":
        return f"uniform {values['low']:g}-{values['high']:g}"
    return f"{kind} ({', '.join(f'{name} {value:g}' for name, value in values.items())}), mean {sigma.mean:g}"


def parse_overrides(text: str | None) -> dict[str, Any]:
    """Return text such as `"hidden_size=256,norm_pix_loss=true"` as fields of a [`NIMConfig`].

    Raises:
        ValueError: A field is unknown, or a part is not of the form FIELD=VALUE.
    """
    overrides: dict[str, Any] = {}
    known = {*NIMConfig().to_dict(), "num_labels"}
    for part in filter(None, (text or "").split(",")):
        name, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator or name not in known:
            raise ValueError(f"config_overrides: {part!r} is not FIELD=VALUE with a field of NIMConfig")
        if name in _TRAINED_FIELDS:
            raise ValueError(f"config_overrides: {name} is what is trained on; use {_TRAINED_FIELDS[name]}")
        overrides[name] = _parse_value(value)
    return overrides


def _parse_value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def config_from_arguments(args: argparse.Namespace, **fields: Any) -> NIMConfig:
    """Return the config of a new model: a named size or a saved config, changed by `fields` and the overrides.

    Raises:
        ValueError: A field is unknown or has a wrong value.
        OSError: There is no such config.
    """
    fields |= parse_overrides(args.config_overrides)
    if args.config_name in NIM_SIZES:
        return NIMConfig.from_size(args.config_name, **fields)
    try:
        return NIMConfig.from_pretrained(args.config_name, cache_dir=args.cache_dir, token=args.token, **fields)
    except OSError as error:
        sizes = ", ".join(NIM_SIZES)
        raise OSError(f"config_name {args.config_name!r} is no size ({sizes}), and no config: {error}") from error


def public_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that may be published: without tokens, and absolute paths cut to their last part."""
    shown = {name: value for name, value in sorted(vars(args).items()) if name not in _SECRETS}
    return {name: _without_folders(value) for name, value in shown.items()}


def _without_folders(value: Any) -> Any:
    # Folders of the machine that trained are not to be published.
    if not isinstance(value, (str, Path)):
        return value
    return Path(value).name if Path(value).is_absolute() else str(value)
