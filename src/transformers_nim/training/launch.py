# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""From arguments to a run: accelerator, length, learning rate, and the header that says what is about to happen."""

import argparse
import importlib.util
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.loading import ImageData, ImageSource
from ..model.noise import parse_sigma
from ..utils.extras import require
from ..utils.memory import keep_freed_memory
from ..utils.processes import check_processes, train_on_cpu
from .arguments import public_arguments
from .checkpoints import find_checkpoint, read_state
from .optimization import make_schedule, scaled_learning_rate
from .precision import Precision, faster_cpu_precision
from .run import RunOptions


@dataclass(frozen=True)
class Plan:
    """How long and how fast a run learns.

    Attributes:
        total_batch_size: Images per update, over all processes.
        total_steps: Updates.
        steps_per_epoch: Updates in one pass over the images; 0 for streams.
        warmup_steps: Updates from 0 to the full learning rate.
        learning_rate: The full learning rate.
    """

    total_batch_size: int
    total_steps: int
    steps_per_epoch: float
    warmup_steps: int
    learning_rate: float


def choose_precision(args: argparse.Namespace) -> Precision:
    """The precision that is asked for, or on a CPU, for `auto` and if none is, the faster one.

    To be called by all processes, before there is an `Accelerator`: the main process measures for all. A run that is
    resumed keeps the precision of its checkpoint.

    Args:
        args: Of them `mixed_precision`, `output_dir` and `resume_from_checkpoint`.

    Raises:
        ValueError: `auto` is not for GPUs, or the checkpoint that was named is not whole.
    """
    if args.mixed_precision == "auto" and not train_on_cpu():
        raise ValueError(
            "mixed_precision auto is for CPUs, and this run is on an accelerator: pass no, bf16 or fp16, or leave it"
            " out for what `accelerate config` or the launch file says"
        )
    if args.mixed_precision not in (None, "auto") or not train_on_cpu():
        return Precision(args.mixed_precision)
    # "no" is the default of `accelerate launch`, and nobody's wish; the others are.
    if args.mixed_precision is None and os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
        return Precision(None)
    accelerate = require("accelerate")
    # Before anything else asks for one, which would look for GPUs.
    state = accelerate.PartialState(cpu=True)
    precision: Precision | None = None
    path = args.resume_from_checkpoint and find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    # What earlier versions did not write down was what the launch file said. CPUs do not train in a GPU's fp16.
    saved = read_state(path).get("mixed_precision", "unknown") if path else None
    if saved == "unknown":
        precision = Precision(None)
    elif saved in ("no", "bf16"):
        precision = Precision(saved, f"as in {path}")
    elif state.is_main_process:
        precision = faster_cpu_precision()
    # Each on its own, processes would come to different ones.
    shared: list[Precision] = accelerate.utils.broadcast_object_list([precision])
    return shared[0]


def make_accelerator(args: argparse.Namespace, precision: Precision) -> Any:
    """An `Accelerator` with gradient accumulation, mixed precision and trackers as the arguments say.

    Args:
        args: The script's arguments.
        precision: From `choose_precision`.

    Raises:
        ValueError: A tracker is not installed or would publish a token, or processes do not find each other.
    """
    accelerate = require("accelerate")
    trackers = [name for name in args.report_to if name != "none"]
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"report_to: {name} is not installed; install it, or pass --report_to none")
    if "wandb" in trackers and (args.token or args.hub_token):
        # It records the command line of its own accord.
        raise ValueError("wandb would publish the token of the command line; use `hf auth login` or HF_TOKEN instead")
    accelerator = accelerate.Accelerator(
        cpu=train_on_cpu(),
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=precision.name,
        log_with=trackers or None,
        project_config=accelerate.utils.ProjectConfiguration(
            project_dir=args.output_dir, logging_dir=str(Path(args.output_dir) / "logs")
        ),
    )
    check_processes(accelerator)
    if accelerator.state.deepspeed_plugin is not None:
        # DeepSpeed takes the batch from a prepared loader, and ours are not prepared. It clips by itself, and
        # Accelerate makes it clip to 1 if nothing is said.
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": args.per_device_train_batch_size,
            "gradient_clipping": args.max_grad_norm or 0.0,
        }
    fsdp = getattr(accelerator.state, "fsdp_plugin", None)
    if fsdp is not None and fsdp.fsdp_version == 2 and fsdp.mixed_precision_policy is not None:
        # Accelerate would have gradients summed and losses rounded in half precision.
        fsdp.mixed_precision_policy = replace(
            fsdp.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def start_trackers(accelerator: Any, project: str, args: argparse.Namespace) -> None:
    """Tells the trackers the arguments, except tokens."""
    config = {
        name: value if isinstance(value, (int, float, str, bool)) else str(value)
        for name, value in public_arguments(args).items()
    }
    accelerator.init_trackers(project, config=config)


def load_data(args: argparse.Namespace, with_labels: bool) -> ImageData:
    """[`ImageSource`] with the arguments of `add_data_arguments`.

    Raises:
        ValueError: See [`ImageSource`]; or a stream has no `--max_train_steps`.
    """
    if args.streaming and args.max_train_steps is None:
        raise ValueError("a stream has no known length: pass --max_train_steps")
    if args.num_workers < 0:
        raise ValueError(f"num_workers must be at least 0, got {args.num_workers}")
    return ImageSource(**{field.name: getattr(args, field.name) for field in fields(ImageSource)}).load(with_labels)


def make_plan(args: argparse.Namespace, data: ImageData, num_processes: int) -> Plan:
    """Works out batch, steps and learning rate.

    Raises:
        ValueError: A number is out of range.
    """
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
                 "max_train_steps", "logging_steps", "checkpoints_total_limit"):  # fmt: skip
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if args.max_grad_norm is not None and not args.max_grad_norm > 0:
        raise ValueError(f"max_grad_norm must be greater than 0, got {args.max_grad_norm}; leave it out for none")
    for sigma in args.eval_sigmas:
        # Now, not at the first validation, which can be at the end.
        parse_sigma(sigma)
    total_batch_size = args.per_device_train_batch_size * num_processes * args.gradient_accumulation_steps
    steps_per_epoch = 0.0 if data.is_streamed else len(data.train) / total_batch_size
    total_steps = args.max_train_steps or math.ceil(args.num_train_epochs * steps_per_epoch)
    if total_steps < 1:
        raise ValueError(f"num_train_epochs {args.num_train_epochs} leaves no step to train")
    warmup = args.num_warmup_steps
    if warmup is None:
        warmup = round(args.warmup_ratio * total_steps)
    rate = args.learning_rate
    if rate is None:
        rate = scaled_learning_rate(args.base_learning_rate, total_batch_size)
    return Plan(total_batch_size, total_steps, steps_per_epoch, warmup, rate)


def steps_of(name: str, value: str | None, plan: Plan) -> int | None:
    """A number of updates, where `"epoch"` stands for those of an epoch.

    Raises:
        ValueError: It is neither a number of at least 1 nor `"epoch"`, or the epoch's length is unknown.
    """
    if value is None:
        return None
    if value == "epoch" and plan.steps_per_epoch:
        return math.ceil(plan.steps_per_epoch)
    if value.isdigit() and int(value) > 0:
        return int(value)
    raise ValueError(f"{name} must be a number of at least 1 or 'epoch' (not for streams), got {value!r}")


def run_options(
    args: argparse.Namespace, plan: Plan, data: ImageData, best_metric: str | None, greater_is_better: bool
) -> RunOptions:
    """The options of a [`TrainingRun`] from the arguments."""
    checkpointing_steps = steps_of("checkpointing_steps", args.checkpointing_steps, plan)
    assert checkpointing_steps is not None
    if data.is_streamed:
        # Its order depends on those that share it out among themselves.
        num_processes = plan.total_batch_size // (args.per_device_train_batch_size * args.gradient_accumulation_steps)
        images = f"a stream for {num_processes} processes with {args.num_workers} workers each"
    else:
        images = f"{len(data.train)} images"
    return RunOptions(
        output_dir=Path(args.output_dir),
        total_steps=plan.total_steps,
        total_batch_size=plan.total_batch_size,
        steps_per_epoch=plan.steps_per_epoch,
        seed=args.seed,
        data_identity=f"{data.name}, {images}",
        checkpointing_steps=checkpointing_steps,
        checkpoints_total_limit=args.checkpoints_total_limit,
        resume_from_checkpoint=args.resume_from_checkpoint,
        eval_steps=steps_of("eval_steps", args.eval_steps, plan),
        logging_steps=args.logging_steps,
        max_grad_norm=args.max_grad_norm,
        best_metric=best_metric if data.validation is not None else None,
        greater_is_better=greater_is_better,
    )


def make_average(accelerator: Any, model: nn.Module, decay: float | None) -> Any:
    """timm's moving average of a model's weights, or None without a decay. To be made before `prepare`.

    Raises:
        ValueError: The decay is not between 0 and 1, or weights are sharded over processes.
    """
    if decay is None:
        return None
    if not 0 < decay < 1:
        raise ValueError(f"ema_decay must be greater than 0 and less than 1, got {decay}")
    if accelerator.distributed_type.value in ("FSDP", "DEEPSPEED"):
        raise ValueError(
            f"ema_decay does not work with {accelerator.distributed_type.value}, which shards the weights"
        )
    return require("timm.utils").ModelEmaV3(model.to(accelerator.device), decay=decay)


def prepare(
    accelerator: Any, args: argparse.Namespace, plan: Plan, model: nn.Module, optimizer: torch.optim.Optimizer,
    min_learning_rate: float = 0.0,
) -> tuple[nn.Module, Any, Any]:  # fmt: skip
    """Gradient checkpointing, compilation, Accelerate's wrappers and the schedule.

    Returns:
        The prepared model and optimizer, and the schedule, which counts updates and is not prepared.
    """
    schedule = make_schedule(
        optimizer, args.lr_scheduler_type, plan.warmup_steps, plan.total_steps, min_learning_rate / plan.learning_rate
    )
    if args.gradient_checkpointing:
        pretrained: Any = getattr(model, "model", model)
        # Renamed in transformers 5.23.
        enable = (
            getattr(pretrained, "activation_checkpointing_enable", None) or pretrained.gradient_checkpointing_enable
        )
        enable()
    if args.torch_compile:
        # In place, so that names of weights stay as they are.
        model.compile()
    model, optimizer = accelerator.prepare(model, optimizer)
    return model, optimizer, schedule


def print_header(accelerator: Any, title: str, rows: Mapping[str, str]) -> None:
    """Says on the main process what is about to happen."""
    width = max(map(len, rows))
    accelerator.print("\n".join([title, *(f"  {name.ljust(width)}  {text}" for name, text in rows.items())]))


def describe_run(
    accelerator: Any, args: argparse.Namespace, plan: Plan, data: ImageData, model: nn.Module, precision: Precision
) -> dict[str, str]:
    """Header lines that both scripts have in common."""
    config = model.config
    # FSDP2 puts its own name before that of the class.
    name = type(model).__name__.removeprefix("FSDP")
    parameters = [p for p in model.parameters() if p.requires_grad]
    height, width = config.image_shape  # type: ignore[union-attr,misc]
    num_train = "a stream" if data.is_streamed else f"{len(data.train):,} images"
    num_validation = f"{len(data.validation):,}" if data.validation is not None else "none"
    epochs = f" ({plan.total_steps / plan.steps_per_epoch:.3g} epochs)" if plan.steps_per_epoch else ""
    patch = "x".join(map(str, config.patch_shape))  # type: ignore[union-attr,arg-type]
    num_processes = accelerator.num_processes
    processes = f"{num_processes} process{'es' if num_processes > 1 else ''}"
    reason = f" ({precision.reason})" if precision.reason else ""
    return {
        "model": f"{name}, {sum(p.numel() for p in parameters) / 1e6:,.2f} M trainable parameters,"
        f" images of {height}x{width}, patches of {patch}",
        "data": f"{data.name}: {num_train} to train on, {num_validation} to validate with",
        "batch": f"{args.per_device_train_batch_size} images x {processes} x {args.gradient_accumulation_steps} passes"
        f" = {plan.total_batch_size} per update",
        "steps": f"{plan.total_steps:,}{epochs}, {plan.warmup_steps:,} of them warm-up",
        "learning rate": f"{plan.learning_rate:.3g}, {args.lr_scheduler_type}; weight decay {args.weight_decay:g}",
        "device": f"{processes} on {accelerator.device.type}, precision {accelerator.mixed_precision}{reason}",
        "output": str(args.output_dir),
    }
