# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Make a training run from command-line arguments: processes, precision, images, length, learning rate, header."""

import argparse
import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..data.augmentation import Transform
from ..data.content import content_hash
from ..data.draws import Draw
from ..data.images import Batch, evaluation_loader, first_images, training_batches
from ..data.loading import ImageData, ImageSource
from ..model.checks_nim import check_counts
from ..model.configuration_nim import NIMConfig
from ..model.image_processing_nim import NIMImageProcessor
from ..model.modeling_nim import NIMPreTrainedModel
from ..model.noise import parse_sigma
from ..utils.extras import require
from ..utils.memory import keep_freed_memory
from ..utils.processes import check_processes, train_on_cpu
from ..utils.statistics import wilson_interval
from ..utils.text_table import plural
from .arguments import (
    LARGEST_BATCH,
    MIN_UPDATES_PER_EPOCH,
    PAPER,
    SMALLEST_BATCH,
    PaperValues,
    config_from_arguments,
    parse_overrides,
    public_arguments,
)
from .checkpoints import agree_on_checkpoint, read_state, remove_run
from .compute import compute_record, describe_compute
from .identity import START, check_identity, config_fields, optimization_settings, task_arguments
from .mae import MaskedAutoencoder
from .optimization import make_optimizer, make_schedule, scaled_learning_rate
from .precision import Precision, faster_cpu_precision
from .run import RunOptions, TrainingRun
from .start import weights_hash


# How long processes wait for one that reads images or checkpoints for all, or writes for all. torch's limits are 10
# minutes on GPUs and 30 on CPUs.
_PATIENCE = timedelta(hours=2)
# Width of an interval of accuracy, above which the header warns.
_WIDE_INTERVAL = 0.1


@dataclass(frozen=True)
class Plan:
    """Batch, length and learning rate of a run.

    Attributes:
        total_batch_size: Images per update, over all processes.
        total_steps: Number of updates.
        steps_per_epoch: Updates per pass over the images; 0 for streams.
        warmup_steps: Updates from 0 to the full learning rate.
        learning_rate: Full learning rate.
        batch_reason: Why the batch is not the usual one, or nothing.
        rate_reason: Where the learning rate comes from, or nothing.
    """

    total_batch_size: int
    total_steps: int
    steps_per_epoch: float
    warmup_steps: int
    learning_rate: float
    batch_reason: str = field(default="", compare=False)
    rate_reason: str = field(default="", compare=False)


# Arguments that both commands or one of them has, by what their numbers must be.
_COUNTS = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
           "max_train_steps", "logging_steps", "checkpoints_total_limit")  # fmt: skip
_SHARES = ("horizontal_flip", "random_erasing", "warmup_ratio")
_POSITIVE = ("num_train_epochs", "base_learning_rate", "learning_rate", "max_grad_norm", "layer_decay")
_AT_LEAST_0 = ("num_workers", "num_warmup_steps", "weight_decay", "min_learning_rate", "mixup", "cutmix",
               "max_decoded_gb")  # fmt: skip


def check_arguments(args: argparse.Namespace, checkpoint: str | None) -> None:
    """Check what can be told from the arguments alone, before models and data are loaded.

    Args:
        args: Arguments of the command.
        checkpoint: Checkpoint to start from; None for a new model.

    Raises:
        ValueError: A number is out of range, a field of the config is unknown or has a wrong value, or it is not clear
            where the images are.
        OSError: There is no such config.
    """
    _image_source(args)
    check_counts(**{name: getattr(args, name) for name in _COUNTS})
    numbers = {name: value for name, value in vars(args).items() if isinstance(value, (int, float))}
    for name, value in numbers.items():
        if name in _SHARES and not 0 <= value <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {value}")
        if name in _POSITIVE and not 0 < value < math.inf:
            raise ValueError(f"{name} must be greater than 0, got {value}")
        if name in _AT_LEAST_0 and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be at least 0, got {value}")
    if args.streaming and args.max_train_steps is None:
        raise ValueError("a stream has no known length: pass --max_train_steps")
    for sigma in args.eval_sigmas or ():
        parse_sigma(sigma)
    for name in ("checkpointing_steps", "eval_steps", "image_steps"):
        _check_steps(name, getattr(args, name, None))
    if checkpoint is None:
        config_from_arguments(args)
    else:
        parse_overrides(args.config_overrides)


def _image_source(args: argparse.Namespace) -> ImageSource:
    return ImageSource(**{one.name: getattr(args, one.name) for one in fields(ImageSource)})


def choose_precision(args: argparse.Namespace) -> Precision:
    """Return the precision that the user asks for, or on a CPU, for `auto` and by default, the faster one.

    Called by all processes before there is an `Accelerator`; the main process measures for all. A resumed run keeps
    the precision of its checkpoint.

    Args:
        args: Arguments, of which `mixed_precision`, `output_dir` and `resume_from_checkpoint` are read.

    Raises:
        ValueError: `auto` is asked for on an accelerator, or the named checkpoint is not complete.
    """
    if args.mixed_precision == "auto" and not train_on_cpu():
        raise ValueError(
            "mixed_precision auto is for CPUs, and this run is on an accelerator: pass no, bf16 or fp16, or leave it"
            " out for what `accelerate config` or the launch file says"
        )
    if args.mixed_precision not in (None, "auto") or not train_on_cpu():
        return Precision(args.mixed_precision)
    # "no" is the default of `accelerate launch`; the others are set by users.
    if args.mixed_precision is None and os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
        return Precision(None)
    accelerate = require("accelerate")
    # Before anything else creates one, which would look for GPUs.
    state = accelerate.PartialState(cpu=True, timeout=_PATIENCE)
    precision: Precision | None = None
    path = args.resume_from_checkpoint and agree_on_checkpoint(state, args.output_dir, args.resume_from_checkpoint)
    # Checkpoints of earlier versions do not hold the precision, which was the launch file's. A GPU's fp16 is not for
    # CPUs.
    saved = read_state(path).get("mixed_precision", "unknown") if path else None
    if saved == "unknown":
        precision = Precision(None)
    elif saved in ("no", "bf16"):
        precision = Precision(saved, f"as in {path}")
    elif state.is_main_process:
        precision = faster_cpu_precision()
    # Each on its own, processes could choose differently.
    shared: list[Precision] = accelerate.utils.broadcast_object_list([precision])
    return shared[0]


def make_accelerator(args: argparse.Namespace, precision: Precision) -> Any:
    """Return an `Accelerator` with gradient accumulation, mixed precision and trackers from the arguments.

    Args:
        args: Arguments of the command.
        precision: Precision from [`choose_precision`].

    Raises:
        ValueError: A tracker is not installed or would publish a token, or processes do not find each other.
    """
    accelerate = require("accelerate")
    trackers = [name for name in args.report_to if name != "none"]
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"report_to: {name} is not installed; install it, or pass --report_to none")
    if "wandb" in trackers and (args.token or args.hub_token):
        # wandb records the command line by itself.
        raise ValueError("wandb would publish the token of the command line; use `hf auth login` or HF_TOKEN instead")
    accelerator = accelerate.Accelerator(
        cpu=train_on_cpu(),
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=precision.name,
        log_with=trackers or None,
        kwargs_handlers=[accelerate.InitProcessGroupKwargs(timeout=_PATIENCE)],
        project_config=accelerate.utils.ProjectConfiguration(
            project_dir=args.output_dir, logging_dir=str(Path(args.output_dir) / "logs")
        ),
    )
    check_processes(accelerator)
    if accelerator.state.deepspeed_plugin is not None:
        # DeepSpeed clips gradients itself, to 1 by Accelerate's default.
        accelerator.state.deepspeed_plugin.deepspeed_config["gradient_clipping"] = args.max_grad_norm or 0.0
    fsdp = getattr(accelerator.state, "fsdp_plugin", None)
    if fsdp is not None and fsdp.fsdp_version == 2 and fsdp.mixed_precision_policy is not None:
        # By default Accelerate sums gradients and rounds losses in half precision.
        fsdp.mixed_precision_policy = replace(
            fsdp.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def choose_batch(num_images: int | None, num_processes: int, passes: int) -> tuple[int, str]:
    """Return the images per process and pass that suit a number of images, and why they are fewer than usual.

    Args:
        num_images: Images to train on; None if their number is unknown.
        num_processes: Number of processes.
        passes: Passes per update.
    """
    size = LARGEST_BATCH

    def updates() -> float:
        return math.inf if num_images is None else num_images / (size * num_processes * passes)

    usual = updates()
    # Even, because mixup pairs images.
    while size > 2 and (updates() < 1 or (size > SMALLEST_BATCH and updates() < MIN_UPDATES_PER_EPOCH)):
        size //= 2
    return size, "" if size == LARGEST_BATCH else f"{LARGEST_BATCH} would make {usual:.2g} updates per epoch"


def choose_rate(args: argparse.Namespace, paper: PaperValues, total_batch_size: int) -> tuple[float, str]:
    """Return the learning rate that the arguments ask for or that suits a batch, and where it comes from."""
    if args.learning_rate is not None:
        return args.learning_rate, ""
    if args.base_learning_rate is not None:
        rate = scaled_learning_rate(args.base_learning_rate, total_batch_size)
        return rate, f"{args.base_learning_rate:g} x {total_batch_size:,} / 256"
    # The rule is for large batches. A small one is for more updates, not for smaller ones (docs/own_pictures.md).
    scaled = min(max(total_batch_size, 256), paper.total_batch_size)
    reason = f"{paper.base_learning_rate:g} x {scaled:,} / 256"
    reason += "" if scaled == total_batch_size else f", the {'least' if scaled > total_batch_size else 'most'}"
    return scaled_learning_rate(paper.base_learning_rate, scaled), reason


def make_plan(args: argparse.Namespace, data: ImageData, num_processes: int, task: str) -> Plan:
    """Return batch, length and learning rate of a run, and set the arguments that were left out to them.

    Raises:
        ValueError: A number is out of range, or an update would need more images than there are.
    """
    num_images = None if data.is_streamed else len(data.train)
    batch_reason = ""
    if args.per_device_train_batch_size is None:
        args.per_device_train_batch_size, batch_reason = choose_batch(
            num_images, num_processes, args.gradient_accumulation_steps
        )
    total_batch_size = args.per_device_train_batch_size * num_processes * args.gradient_accumulation_steps
    if num_images is not None and total_batch_size > num_images:
        raise ValueError(
            f"an update of {total_batch_size:,} images ({args.per_device_train_batch_size} x {num_processes} x"
            f" {args.gradient_accumulation_steps}) needs more than the {plural(num_images, 'image')} to train on;"
            " pass a smaller --per_device_train_batch_size or --gradient_accumulation_steps, or leave them out"
        )
    steps_per_epoch = 0.0 if num_images is None else num_images / total_batch_size
    total_steps = args.max_train_steps or math.ceil(args.num_train_epochs * steps_per_epoch)
    if total_steps < 1:
        raise ValueError(f"num_train_epochs {args.num_train_epochs} leaves no step to train")
    warmup = args.num_warmup_steps
    if warmup is None:
        warmup = round(args.warmup_ratio * total_steps)
    rate, rate_reason = choose_rate(args, PAPER[task], total_batch_size)
    return Plan(total_batch_size, total_steps, steps_per_epoch, warmup, rate, batch_reason, rate_reason)


def steps_of(name: str, value: str | None, plan: Plan) -> int | None:
    """Return a number of updates; `"epoch"` stands for those of an epoch.

    Raises:
        ValueError: The value is neither a number of at least 1 nor `"epoch"`, or the epoch's length is unknown.
    """
    _check_steps(name, value, is_streamed=not plan.steps_per_epoch)
    if value is None:
        return None
    return math.ceil(plan.steps_per_epoch) if value == "epoch" else int(value)


def _check_steps(name: str, value: str | None, is_streamed: bool = False) -> None:
    if value is None or (value == "epoch" and not is_streamed) or (value.isdigit() and int(value) > 0):
        return
    raise ValueError(f"{name} must be a number of at least 1 or 'epoch' (not for streams), got {value!r}")


def _number_of(data: ImageData, args: argparse.Namespace, accelerator: Any) -> str:
    """Return how many images there are, in the words that checkpoints of earlier versions hold."""
    if data.is_streamed:
        # Its order depends on processes and workers.
        return f"a stream for {accelerator.num_processes} processes with {args.num_workers} workers each"
    return f"{len(data.train)} images"


def _shared_hash(data: ImageData, accelerator: Any) -> str:
    """Return the hash of the images; the main process reads them for all."""
    found: list[str] = [content_hash(data) if accelerator.is_main_process else ""]
    shared: list[str] = require("accelerate.utils").broadcast_object_list(found)
    return shared[0]


@dataclass(frozen=True)
class TrainingJob:
    """Processes, images and plan of a training command.

    Attributes:
        task: `"pretraining"` or `"finetuning"`.
        args: Arguments of the command.
        accelerator: Accelerator from [`make_accelerator`].
        precision: Its precision.
        data: Images to train on and to validate with.
        plan: Batch, length and learning rate.
        images: What the images are, by their content.
    """

    task: str
    args: argparse.Namespace
    accelerator: Any
    precision: Precision
    data: ImageData
    plan: Plan
    images: str

    @classmethod
    def load(cls, task: str, args: argparse.Namespace, accelerator: Any, precision: Precision) -> "TrainingJob":
        """Load the images that the arguments describe, and plan the run.

        Raises:
            ValueError: An argument is out of range, images or labels are missing, or one of these is not that of the
                run to resume.
        """
        which = args.resume_from_checkpoint
        resumed = which and agree_on_checkpoint(accelerator, args.output_dir, which)
        if resumed:
            # What can be told before images and models are loaded.
            check_identity(resumed, read_state(resumed)["identity"], task_arguments(args))
        data = _image_source(args).load(with_labels=task == "finetuning")
        images = f"{_number_of(data, args, accelerator)} (hash {_shared_hash(data, accelerator)})"
        if resumed:
            check_identity(resumed, read_state(resumed)["identity"], {"images": images})
        plan = make_plan(args, data, accelerator.num_processes, task)
        if accelerator.state.deepspeed_plugin is not None:
            # DeepSpeed reads it from a prepared loader, and ours are not prepared.
            size = args.per_device_train_batch_size
            accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = size
        return cls(task, args, accelerator, precision, data, plan, images)

    def start(
        self,
        model: NIMPreTrainedModel | MaskedAutoencoder,
        groups: list[dict[str, Any]],
        betas: tuple[float, float],
        best_metric: str,
        greater_is_better: bool = True,
        ema_decay: float | None = None,
        min_learning_rate: float = 0.0,
    ) -> TrainingRun:
        """Prepare a model for training, and resume it if the arguments say so.

        Args:
            model: Model to train.
            groups: Its parameters, from [`parameter_groups`].
            betas: AdamW's betas.
            best_metric: Figure that chooses the best model.
            greater_is_better: Whether a larger figure is better.
            ema_decay: Decay of the moving average of the weights, in (0, 1); None for no average.
            min_learning_rate: Learning rate at the end of the cosine.

        Raises:
            ValueError: An argument is out of range, or there is a checkpoint that does not fit.
        """
        args, plan, accelerator, model_config = self.args, self.plan, self.accelerator, model.config
        image_processor = NIMImageProcessor.from_config(model_config)
        optimizer = make_optimizer(groups, betas)
        ema = None
        if ema_decay is not None:
            if not 0 < ema_decay < 1:
                raise ValueError(f"ema_decay must be greater than 0 and less than 1, got {ema_decay}")
            if accelerator.distributed_type.value in ("FSDP", "DEEPSPEED"):
                kind = accelerator.distributed_type.value
                raise ValueError(f"ema_decay does not work with {kind}, which shards the weights")
            ema = require("timm.utils").ModelEmaV3(model.to(accelerator.device), decay=ema_decay)
        ratio = min_learning_rate / plan.learning_rate
        schedule = make_schedule(optimizer, args.lr_scheduler_type, plan.warmup_steps, plan.total_steps, ratio)
        if args.gradient_checkpointing:
            pretrained: Any = getattr(model, "model", model)
            # Renamed in transformers 5.23.
            enable = getattr(pretrained, "activation_checkpointing_enable", None)
            (enable or pretrained.gradient_checkpointing_enable)()
        if args.torch_compile:
            # In place, so that the weights keep their names.
            model.compile()
        # The schedule counts updates and is not prepared.
        model, optimizer = accelerator.prepare(model, optimizer)
        options = self._options(model_config, best_metric, greater_is_better)
        # Only now has everything been found to fit.
        if args.overwrite_output_dir and accelerator.is_main_process:
            remove_run(args.output_dir)
        accelerator.wait_for_everyone()
        return TrainingRun(accelerator, options, model, optimizer, schedule, image_processor, ema)

    def _task(self, config: NIMConfig) -> dict[str, Any]:
        """Return what makes this run another one, besides seed and batch."""
        starts = {name: getattr(self.args, name) for name in START if hasattr(self.args, name)}
        source = {"cache_dir": self.args.cache_dir, "token": self.args.token}
        return {
            **task_arguments(self.args),
            "images": self.images,
            "config": config_fields(config),
            **{name: path and f"weights of SHA-256 {weights_hash(path, **source)}" for name, path in starts.items()},
        }

    def _settings(self) -> dict[str, Any]:
        args, plan = self.args, self.plan
        return optimization_settings(
            args,
            learning_rate=plan.learning_rate,
            max_train_steps=plan.total_steps,
            num_warmup_steps=plan.warmup_steps,
            mixed_precision=self.accelerator.mixed_precision,
            num_processes=self.accelerator.num_processes,
        )

    def _options(self, config: NIMConfig, best_metric: str, greater_is_better: bool) -> RunOptions:
        args, plan, data = self.args, self.plan, self.data
        checkpointing_steps = steps_of("checkpointing_steps", args.checkpointing_steps, plan)
        assert checkpointing_steps is not None
        return RunOptions(
            output_dir=Path(args.output_dir),
            total_steps=plan.total_steps,
            total_batch_size=plan.total_batch_size,
            steps_per_epoch=plan.steps_per_epoch,
            seed=args.seed,
            data_identity=f"{data.name}, {_number_of(data, args, self.accelerator)}",
            checkpointing_steps=checkpointing_steps,
            task=self._task(config),
            settings=self._settings(),
            checkpoints_total_limit=args.checkpoints_total_limit,
            resume_from_checkpoint=args.resume_from_checkpoint,
            eval_steps=steps_of("eval_steps", args.eval_steps, plan),
            logging_steps=args.logging_steps,
            max_grad_norm=args.max_grad_norm,
            best_metric=best_metric if data.validation is not None else None,
            greater_is_better=greater_is_better,
        )

    def announce(self, title: str, run: TrainingRun, rows: Mapping[str, str]) -> None:
        """Print a header on the main process, and pass the arguments, except tokens, to the trackers.

        Args:
            title: First line.
            run: Run.
            rows: Further lines, by name.
        """
        rows = {**self._describe(run.inner_model), **rows}
        width = max(map(len, rows))
        self.accelerator.print("\n".join([title, *(f"  {name.ljust(width)}  {text}" for name, text in rows.items())]))
        config = {
            name: value if isinstance(value, (int, float, str, bool)) else str(value)
            for name, value in public_arguments(self.args).items()
        }
        # TensorBoard forgets the steps that will be repeated. The last one may be validated once more.
        first_step = run.step + 1 if run.step < run.options.total_steps else run.step
        options = {"tensorboard": {"purge_step": first_step}} if run.step else {}
        self.accelerator.init_trackers(f"nim-{self.task}", config=config, init_kwargs=options)
        if first_step == run.step:
            run.repeat_last_rows()

    def _describe(self, model: Any) -> dict[str, str]:
        args, plan, data, accelerator = self.args, self.plan, self.data, self.accelerator
        # The baseline's mask token does not count.
        model = getattr(model, "model", model)
        # FSDP2 puts its name before that of the class.
        name = type(model).__name__.removeprefix("FSDP")
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        height, width = model.config.image_shape
        patch = "x".join(map(str, model.config.patch_shape))
        num_train = "a stream" if data.is_streamed else f"{len(data.train):,} images"
        num_validation = f"{len(data.validation):,}" if data.validation is not None else "none"
        epochs = f" ({plan.total_steps / plan.steps_per_epoch:.3g} epochs)" if plan.steps_per_epoch else ""
        compute = compute_record(self.task, args, model.config, plan.total_steps * plan.total_batch_size)
        processes = plural(accelerator.num_processes, "process")
        reasons = [f" ({text})" if text else "" for text in (self.precision.reason, plan.batch_reason)]
        rate = f"{plan.learning_rate:.3g}" + (f" ({plan.rate_reason})" if plan.rate_reason else "")
        rows = {
            "model": f"{name}, {trainable / 1e6:,.2f} M trainable parameters, images of {height}x{width}, patches of"
            f" {patch}",
            "data": f"{data.name}: {num_train} to train on, {num_validation} to validate with",
            "batch": f"{plural(args.per_device_train_batch_size, 'image')} x {processes} x"
            f" {plural(args.gradient_accumulation_steps, 'pass')} = {plan.total_batch_size:,} per update{reasons[1]}",
            "steps": f"{plan.total_steps:,}{epochs}, {plan.warmup_steps:,} of them warm-up",
            **({"compute": describe_compute(compute)} if compute is not None else {}),
            "learning rate": f"{rate}, {args.lr_scheduler_type}; weight decay {args.weight_decay:g}",
            "device": f"{processes} on {accelerator.device.type}, precision {accelerator.mixed_precision}{reasons[0]}",
            "output": str(args.output_dir),
        }
        if self.task == "finetuning" and data.validation is not None:
            low, high = wilson_interval(0.5, len(data.validation))
            if high - low > _WIDE_INTERVAL:
                rows["validation"] = (
                    f"{plural(len(data.validation), 'image')} tell an accuracy to {50 * (high - low):.0f} points or"
                    " so: which of several models is the best is luck"
                )
        return rows

    def fit(
        self,
        run: TrainingRun,
        transform: Transform,
        noise: Draw | None,
        objective: Callable[[Batch], torch.Tensor],
        evaluate: Callable[..., dict[str, float]],
        draw: Callable[..., object] | None = None,
        image_steps: int | None = None,
    ) -> None:
        """Train to the last step, validate on the way, and plot.

        Args:
            run: Run from [`~TrainingJob.start`].
            transform: Augmentation.
            noise: Draws random numbers of each image by name, which the objective reads; None for none.
            objective: Function from a batch to its mean loss, see [`objectives`](objectives.py).
            evaluate: Function from a model and `loader`, the validation images, to figures by name.
            draw: Function of a model, a step and `images`, the first validation images, that plots them; or None.
            image_steps: Updates between plots; None for a single one at the end.
        """
        args, data, accelerator = self.args, self.data, self.accelerator
        num_channels = run.inner_model.config.num_channels
        batches = partial(
            training_batches,
            data,
            num_channels,
            transform,
            args.per_device_train_batch_size,
            args.seed,
            accelerator.num_processes,
            accelerator.process_index,
            num_workers=args.num_workers,
            pin_memory=accelerator.device.type == "cuda",
            draw=noise,
            # A picture that is seen once is better decoded by a worker.
            max_decoded_bytes=args.max_decoded_gb * 1e9 if self.plan.total_steps > self.plan.steps_per_epoch else 0.0,
        )
        if data.validation is None:
            run.fit(batches, objective)
            return
        loader = accelerator.prepare_data_loader(
            evaluation_loader(
                data, num_channels, run.image_processor, args.per_device_eval_batch_size, args.num_workers
            )
        )
        if draw is not None:
            draw = partial(draw, images=first_images(loader.dataset).to(accelerator.device))
        run.fit(batches, objective, partial(evaluate, loader=loader), draw, image_steps)
