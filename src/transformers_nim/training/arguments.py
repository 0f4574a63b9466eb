# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Define the command-line arguments that pretraining and fine-tuning share."""

import argparse
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..attacks.geometry import NORMS
from ..model.checks_nim import check_counts
from ..model.configuration_nim import NIM_SIZES, NIMConfig
from ..model.noise import GammaSigma, SigmaDistribution, UniformSigma, parse_sigma
from .optimization import SCHEDULES


# Optional packages that training cannot do without.
PACKAGES = ("accelerate", "datasets", "matplotlib", "tqdm")
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
    add("--train_dir", help="folder with one folder of images per class, instead of --dataset_name")
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


def add_optimization_arguments(
    parser: argparse.ArgumentParser, base_learning_rate: float, epochs: float, total_batch_size: int
) -> Any:
    """Add optimizer, schedule and length, and return their group. The defaults are those of MAE and the paper."""
    group = parser.add_argument_group("optimization")
    add = group.add_argument
    add("--per_device_train_batch_size", type=int, default=64, help="images per process and pass")
    add("--per_device_eval_batch_size", type=int, default=128, help="images per process and pass in validation")
    add(
        "--gradient_accumulation_steps",
        type=int,
        default=1,
        help=f"passes per update; images per update = batch x processes x passes, in the paper {total_batch_size}",
    )
    add("--num_train_epochs", type=float, default=epochs, help="passes over the training images; as in the paper")
    add("--max_train_steps", type=int, help="number of updates, instead of --num_train_epochs")
    add(
        "--base_learning_rate",
        type=float,
        default=base_learning_rate,
        help="learning rate = this x images per update / 256",
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
        default=[25.0, 50.0, 75.0],
        help="noise scales to validate at, in units of 0..255 pixels",
    )
    add("--report_to", nargs="+", default=["tensorboard"], help="trackers (tensorboard, wandb, trackio, ...) or none")
    add("--push_to_hub", action="store_true", help="upload the finished model")
    add("--hub_model_id", help="repository to push to; by default the name of output_dir")
    add("--hub_private_repo", action="store_true", help="create the repository as a private one")
    add("--hub_token", help="token for the push; by default that of `hf auth login`")
    return group


def add_sigma_arguments(group: Any, kind: str, paper: str) -> None:
    """Add the distribution of sigma in training.

    Args:
        group: Group of arguments.
        kind: Default type.
        paper: Distribution of the paper, in words.
    """
    add = group.add_argument
    add(
        "--sigma_distribution",
        choices=("gamma", "uniform", "constant"),
        default=kind,
        help=f"distribution of each image's noise scale sigma (the paper's: {paper})",
    )
    unit = "in units of 0..255 pixels"
    add("--gamma_concentration", type=float, default=25.0, help="gamma: concentration; mean = concentration x scale")
    add("--gamma_scale", type=float, default=3.0, help=f"gamma: scale, {unit}")
    add("--sigma_low", type=float, default=0.0, help=f"uniform: lowest sigma, {unit}")
    add("--sigma_high", type=float, default=30.0, help=f"uniform: highest sigma, {unit}")
    add("--sigma_value", type=float, default=70.0, help=f"constant: sigma, {unit}")


def add_attack_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of adversarial training."""
    add = parser.add_argument_group("adversarial training").add_argument
    add("--adversarial_steps", type=int, default=0, help="steps of PGD on training images; 0 for no attack")
    add("--adversarial_eps", type=float, default=8.0, help="radius of the attack, in x/255")
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


def sigma_from_arguments(args: argparse.Namespace) -> SigmaDistribution:
    """Return the distribution that the arguments of [`add_sigma_arguments`] describe.

    Raises:
        ValueError: A parameter is out of range.
    """
    if args.sigma_distribution == "gamma":
        return GammaSigma(args.gamma_concentration, args.gamma_scale)
    if args.sigma_distribution == "uniform":
        return UniformSigma(args.sigma_low, args.sigma_high)
    return parse_sigma(args.sigma_value)


def describe_sigma(sigma: SigmaDistribution) -> str:
    """Return a distribution of sigma in words."""
    return f"{sigma.to_dict()}, mean {sigma.mean:g}, in units of 0..255 pixels"


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
