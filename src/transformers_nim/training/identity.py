# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Tell what makes a training the one that it is, so that no other one is mixed into it when it is resumed.

Every argument of a command belongs to its task, unless it is named here as one that may change. So do the config, the
weights that the training began with and the images, each by its content.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from ..model.configuration_nim import NIMConfig
from ..utils.records import describe_change


# How to come to the goal: a lower rate after a diverged loss, more steps, other machines. Results say from which step
# on a change holds.
OPTIMIZATION = frozenset({
    "learning_rate", "base_learning_rate", "min_learning_rate", "layer_decay", "denoiser_learning_rate_factor",
    "denoiser_layer_decay", "weight_decay", "max_grad_norm", "lr_scheduler_type", "warmup_ratio", "num_warmup_steps",
    "num_train_epochs", "max_train_steps",
    # Images per update may be split otherwise, but stay as many.
    "per_device_train_batch_size", "gradient_accumulation_steps",
    "mixed_precision", "gradient_checkpointing", "torch_compile",
})  # fmt: skip
# Names of parts of a data set. Its images are compared by their content, of a stream by its beginning alone: there
# these are compared, too.
_PARTS_OF_DATA = frozenset({
    "dataset_config_name", "dataset_revision", "train_split_name", "validation_split_name", "image_column_name",
    "label_column_name",
})  # fmt: skip
# What is not learned from, or only says where something is.
SURROUNDINGS = _PARTS_OF_DATA | frozenset({
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "checkpointing_steps", "checkpoints_total_limit",
    "eval_steps", "image_steps", "logging_steps", "report_to", "per_device_eval_batch_size", "num_workers",
    "max_decoded_gb", "cache_dir", "token", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_token",
    # It lets a training begin that would be refused, and changes none.
    "ignore_mismatched_sizes",
    # Names of what is compared by its content: the config, and the images.
    "config_name", "config_overrides", "dataset_name", "train_dir", "validation_dir",
})  # fmt: skip
MAY_CHANGE = OPTIMIZATION | SURROUNDINGS
# Names of the checkpoint to start from, of which the weights are compared.
START = ("init_from", "model_name_or_path")
# Fields that arguments of other names, or of the same, decide: these are what a user knows.
_MIRRORS = ("pretraining_sigma", "finetuning_sigma", "defense_sigma", "denoise", "freeze_denoiser", "drop_path_rate")
# What entries that are no arguments come from.
_SOURCES = {
    "total_batch_size": " (per_device_train_batch_size x processes x gradient_accumulation_steps)",
    "config": " (config_name, config_overrides)",
}
# Fields of all configs that change what is learned.
_COMMON_FIELDS = ("id2label", "problem_type")


def task_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of a command that must stay as they are, but for the name of the start."""
    may_change = (MAY_CHANGE - _PARTS_OF_DATA if args.streaming else MAY_CHANGE) | {*START}
    return _plain({name: value for name, value in vars(args).items() if name not in may_change})


def config_fields(config: NIMConfig) -> dict[str, Any]:
    """Return the fields of a config that make a model, without those that transformers keeps there."""
    common = PreTrainedConfig().to_dict().keys() - {*_COMMON_FIELDS}
    return _plain({name: value for name, value in config.to_dict().items() if name not in common})


def optimization_settings(args: argparse.Namespace, **decided: Any) -> dict[str, Any]:
    """Return the settings that may change on the way and are recorded.

    Args:
        args: Arguments of the command.
        decided: What they came to: values instead of those of arguments, or beside them. Arguments that led there are
            left out.
    """
    led = {"base_learning_rate", "warmup_ratio", "num_train_epochs"}
    return _plain({name: value for name, value in vars(args).items() if name in OPTIMIZATION - led} | decided)


def check_identity(path: str | Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on from a checkpoint with another task. What only one of the two has is not compared.

    Args:
        path: The checkpoint.
        saved: Identity of the run that it belongs to.
        now: Identity of this run.

    Raises:
        ValueError: They differ.
    """
    saved, now = _flat(saved), _flat(_plain(now))
    if "images" in saved and "images" in now:
        # Known by their content, they may have another name.
        now.pop("data", None)
    changed = [name for name in saved if name in now and saved[name] != now[name]]
    # Each change once, by the name of its argument.
    mirrors = {f"config.{name}" for name in _MIRRORS}
    changed = [name for name in changed if name not in mirrors] or changed
    if changed:
        shown = "; ".join(
            describe_change(name, saved[name], now[name]) + _SOURCES.get(name.split(".")[0], "") for name in changed
        )
        raise ValueError(
            f"{path} belongs to another run: {shown}. Pass what this run began with, or begin another one in a new"
            " --output_dir"
        )


def uncompared(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names that only one of two identities has, as those of two versions do."""
    return sorted(_flat(saved).keys() ^ _flat(_plain(now)).keys())


def setting_changes(step: int, saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings that differ from those of a checkpoint, as records.

    Args:
        step: Updates up to that checkpoint, which were made with `saved`.
        saved: Settings until then.
        now: Settings from then on.
    """
    now = _plain(now)
    return [
        {"after_step": step, "name": name, "was": saved.get(name), "is": now.get(name)}
        for name in sorted(saved.keys() | now.keys())
        if saved.get(name) != now.get(name)
    ]


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity with fields of the config beside its other entries, and without names of the start."""
    flat = {name: value for name, value in identity.items() if name != "config"}
    return flat | {f"config.{name}": value for name, value in identity.get("config", {}).items()}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as they come back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain
