# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Plan a long run before GPUs are paid for: FLOPs, hours, memory, the largest batch that fits, and the command.

    transformers-nim plan --config_name base
    transformers-nim plan --task finetuning --num_gpus 4 --gpu_peak_tflops 312 --bytes_per_gpu 40e9

Nothing is trained: FLOPs follow from the model's size, and activations are measured on tensors without contents. What
is assumed is printed with the result; above all, how much of its peak a GPU reaches. Models are best compared after
runs of equal FLOPs: choose --num_train_epochs so.
"""

import argparse
import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import AttentionInterface
from transformers.initialization import no_init_weights

from .. import NIMConfig, NIMForImageClassification, NIMForPreTraining, NIMForRobustImageClassification
from ..training import arguments
from ..training.compute import Recipe, in_flops, training_compute
from ..training.mae import MaskedAutoencoder
from ..training.objectives import TRAIN_ON
from ..utils.cli import check_arguments, make_parser, run_command
from ..utils.text_table import render_table


GPUS_PER_NODE = 8
COLUMNS = ("GPUs", "peak TFLOP/s", "memory", "images/s", "hours", "GPU hours", "workers", "fits", "checkpointed",
           "batch x GPUs x passes")  # fmt: skip

# Weight, gradient, AdamW's two moments and DDP's copy of the gradient in float32; autocast's copy of the weight.
BYTES_PER_TRAINED_PARAMETER = 5 * 4 + 2
BYTES_PER_FROZEN_PARAMETER = 4


@dataclass(frozen=True)
class Hardware:
    """Equal GPUs.

    Attributes:
        num_gpus: How many.
        peak_tflops: What one does at best, with dense matrices in half precision.
        bytes_per_gpu: Memory of one.
        precision: The half precision that it has, `"bf16"` or `"fp16"`.
    """

    num_gpus: int
    peak_tflops: float
    bytes_per_gpu: float
    precision: str = "bf16"


# Figures of the manufacturer. A V100 has no bf16.
HARDWARE = {
    "8x V100": Hardware(8, 125, 32e9, "fp16"),
    "8x A100": Hardware(8, 312, 80e9),
    "8x H100": Hardware(8, 989, 80e9),
    "64x A100": Hardware(64, 312, 80e9),
}


@dataclass(frozen=True)
class Cost:
    """Parameters of a model, and FLOPs and bytes of activations for one image."""

    trained_parameters: int
    frozen_parameters: int
    forward_flops: int
    step_flops: int
    activation_bytes: int
    checkpointed_bytes: int

    @property
    def static_bytes(self) -> int:
        """Return the memory that a GPU needs before it sees an image, in bytes."""
        return (
            BYTES_PER_TRAINED_PARAMETER * self.trained_parameters + BYTES_PER_FROZEN_PARAMETER * self.frozen_parameters
        )


def make_step(config: NIMConfig, recipe: Recipe) -> tuple[nn.Module, Callable]:
    """Return the model that is trained, and a step from images to the loss, which draws no noise.

    An attack is left out: what its passes keep is gone before the images are trained on.
    """
    if recipe.task == "finetuning":
        return make_finetuning_step(config, recipe)
    denoiser = NIMForPreTraining(config).train()
    if recipe.mask_ratio is not None:
        masked = MaskedAutoencoder(denoiser, recipe.mask_ratio)
        return masked, lambda images: masked(images).loss
    return denoiser, lambda images: denoise(denoiser, images)[1]


def denoise(denoiser: NIMForPreTraining, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return denoised images, and the loss."""
    _, logits, denoised = denoiser.restore(images, torch.zeros(len(images)), images)
    return denoised, nn.functional.mse_loss(logits.float(), denoiser.patch_targets(images))


def make_finetuning_step(config: NIMConfig, recipe: Recipe) -> tuple[nn.Module, Callable]:
    """Return what [`make_step`] does for a classifier."""
    denoises = recipe.train_on == "denoised"
    fields = {"denoise": denoises, "freeze_denoiser": not recipe.train_denoiser}
    config = NIMConfig.from_dict(config.to_dict() | fields)
    model = (NIMForRobustImageClassification if denoises else NIMForImageClassification)(config).train()

    def finetune(images: torch.Tensor) -> torch.Tensor:
        seen = images.repeat_interleave(recipe.num_draws, 0)
        labels, options = torch.zeros(len(seen), dtype=torch.long), {}
        own: torch.Tensor | float = 0.0
        if isinstance(model, NIMForRobustImageClassification):
            assert model.denoiser is not None
            options = {"sigma": None}
            with torch.set_grad_enabled(recipe.train_denoiser):
                seen, _ = denoise(model.denoiser, seen)
            if recipe.has_denoising_loss:
                # Of clean and of attacked images.
                passes = 2 if recipe.attack_steps else 1
                own = torch.stack([denoise(model.denoiser, images)[1] for _ in range(passes)]).mean()
        return model(seen, labels=labels, **options).loss + own

    return model, finetune


def saved_bytes(run: Callable[[], torch.Tensor]) -> int:
    """Return the bytes that a forward pass under autocast keeps for the backward pass."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # Views share their storage; a storage that is held here does not give its address to another.
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        loss = run()
    del loss
    return sum(storage.nbytes() for storage in storages.values())


def measure(config: NIMConfig, recipe: Recipe | None = None) -> Cost:
    """Return FLOPs, and measure activations.

    Args:
        config: The model.
        recipe: What is computed for each image; by default the pretraining of a denoiser.
    """
    recipe = recipe or Recipe()
    compute = training_compute(config, recipe)
    assert compute is not None, "the config of a NIM size has no classifier of another kind"
    with FakeTensorMode():
        with no_init_weights():
            model, step = make_step(config, recipe)
        inner: Any = getattr(model, "model", model)

        def images(number: int) -> torch.Tensor:
            return torch.zeros(number, config.num_channels, *config.image_shape)

        # As GPUs have it; under the name "sdpa", CPUs have it written out in bf16.
        AttentionInterface.register("fused", AttentionInterface()["sdpa"])
        inner.set_attn_implementation("fused")
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                # As autocast does on GPUs, and not on CPUs.
                module.register_forward_pre_hook(lambda _, inputs: inputs[0].float())

        def per_image(run: Callable) -> int:
            # The difference leaves out what does not grow with the batch, such as weights.
            return saved_bytes(lambda: run(images(2))) - saved_bytes(lambda: run(images(1)))

        activations = per_image(step)
        one_layer = recipe.num_draws * per_image(
            lambda batch: inner.nim.layers[-1](inner.nim.embeddings(batch, False))
        )
        # Renamed in transformers 5.23.
        enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
        enable()
        # In the backward pass, one layer at a time has its activations back.
        checkpointed = per_image(step) + one_layer
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trained
    return Cost(trained, frozen, compute.forward_flops, compute.flops, activations, checkpointed)


def largest_batch(cost: Cost, bytes_per_gpu: float, reserve: float, gradient_checkpointing: bool = False) -> int:
    """Return how many images fit a GPU at a time; 0 if the model alone does not fit."""
    per_image = cost.checkpointed_bytes if gradient_checkpointing else cost.activation_bytes
    return max(int((bytes_per_gpu * (1 - reserve) - cost.static_bytes) / per_image), 0)


def split_batch(total_batch_size: int, num_gpus: int, largest: int) -> tuple[int, int] | None:
    """Split the batch of an update over GPUs and passes.

    Returns:
        Images per GPU and pass, at most `largest`, and the fewest passes that make up the batch. None if not even one
        image per GPU and pass fits.

    Raises:
        ValueError: The GPUs cannot share the batch evenly.
    """
    if total_batch_size % num_gpus:
        raise ValueError(f"{num_gpus} GPUs cannot share a total_batch_size of {total_batch_size} evenly")
    if largest < 1:
        return None
    share = total_batch_size // num_gpus
    passes = next(passes for passes in range(math.ceil(share / largest), share + 1) if share % passes == 0)
    return share // passes, passes


def hours(cost: Cost, images: float, hardware: Hardware, utilization: float) -> float:
    """Return the hours of training on so many images."""
    return cost.step_flops * images / (hardware.num_gpus * hardware.peak_tflops * 1e12 * utilization) / 3600


def workers_per_gpu(args: argparse.Namespace, cost: Cost, hardware: Hardware) -> int:
    """Return how many processes keep a GPU in images."""
    images_per_second = hardware.peak_tflops * 1e12 * args.utilization / cost.step_flops
    return math.ceil(images_per_second / args.images_per_worker)


def launch_command(args: argparse.Namespace, hardware: Hardware, split: tuple[int, int], num_workers: int) -> str:
    """Return the command for a row of the table."""
    num_gpus, num_nodes = hardware.num_gpus, math.ceil(hardware.num_gpus / GPUS_PER_NODE)
    name = "multi_node" if num_nodes > 1 else "ddp" if num_gpus > 1 else "single_gpu"
    command = "finetune" if args.task == "finetuning" else "pretrain"
    lines = [f"transformers-nim {command} --launch {name} num_processes={num_gpus}"]
    if num_nodes > 1:
        lines += [f"num_machines={num_nodes} machine_rank=$RANK main_process_ip=$ADDRESS"]
    if args.task == "finetuning":
        lines += ["--model_name_or_path outputs/nim --output_dir outputs/robust"]
        lines += [" ".join(args.recipe_options)] if args.recipe_options else []
    else:
        lines += [f"--config_name {args.config_name} --output_dir outputs/{args.pretext}"]
        if args.pretext == "mae":
            lines += [f"--pretext mae --mask_ratio {args.mask_ratio:g}"]
        if args.config_overrides:
            lines += [f"--config_overrides {args.config_overrides}"]
    lines += [f"--train_dir imagenet/train --validation_dir imagenet/val --num_train_epochs {args.num_train_epochs:g}"]
    lines += [f"--per_device_train_batch_size {split[0]} --gradient_accumulation_steps {split[1]}"]
    lines += [f"--num_workers {num_workers}"]
    if args.gradient_checkpointing:
        lines[-1] += " --gradient_checkpointing"
    if hardware.precision != "bf16":
        lines[-1] += f" --mixed_precision {hardware.precision}"
    return " \\\n  ".join(lines)


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of fine-tuning that say what is computed for an image."""
    parser.add_argument("--train_on", choices=TRAIN_ON, default="denoised", help="images to fine-tune on")
    arguments.add_attack_arguments(parser)
    arguments.add_draw_arguments(parser)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, required="")
    parser.add_argument("--task", choices=("pretraining", "finetuning"), default="pretraining", help="what to plan")
    parser.add_argument("--pretext", choices=("nim", "mae"), default="nim", help="denoise, or fill in hidden patches")
    parser.add_argument("--mask_ratio", type=float, default=0.75, help="part of the patches that MAE hides")
    parser.add_argument("--num_labels", type=int, default=1000, help="classes to fine-tune for")
    add_recipe_arguments(parser)
    arguments.add_config_arguments(parser)
    parser.set_defaults(cache_dir=None, token=None)
    group = parser.add_argument_group("run")
    group.add_argument("--num_images", type=int, default=1_281_167, help="images to train on; ImageNet's by default")
    group.add_argument("--num_train_epochs", type=float, help="if left out, the paper's: 800, fine-tuning 100")
    group.add_argument("--total_batch_size", type=int, help="of an update; if left out, 4096, fine-tuning 1024")
    group.add_argument("--gradient_checkpointing", action="store_true", help="choose batches that fit with it")
    group = parser.add_argument_group("hardware; without --gpu_peak_tflops, some common choices")
    group.add_argument("--num_gpus", type=int, default=8, help=f"in nodes of {GPUS_PER_NODE}")
    group.add_argument("--gpu_peak_tflops", type=float, help="dense, in half precision, such as 312 for an A100")
    group.add_argument("--bytes_per_gpu", type=float, default=80e9, help="memory")
    group.add_argument("--utilization", type=float, default=0.4, help="part of the peak that training reaches")
    group.add_argument(
        "--images_per_worker", type=float, default=200, help="images that a process reads and augments per second"
    )
    group.add_argument("--memory_reserve", type=float, default=0.1, help="part of the memory for all else")
    parser.add_argument("--output_file", help="JSON file for the figures and commands")
    args = parser.parse_args(argv)
    if not 0 < args.utilization <= 1 or not 0 <= args.memory_reserve < 1:
        parser.error("--utilization has to be more than 0 and at most 1, --memory_reserve at least 0 and less than 1")
    check_arguments(parser, args, (), ("num_labels", "num_images", "total_batch_size", "num_gpus"))
    for name in ("num_train_epochs", "gpu_peak_tflops", "bytes_per_gpu", "images_per_worker"):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < math.inf:
            parser.error(f"--{name} must be greater than 0, got {getattr(args, name):g}")
    if not 0 < args.mask_ratio < 1:
        parser.error(f"--mask_ratio must be between 0 and 1, got {args.mask_ratio:g}")
    arguments.check_draws(args)
    recipe = argparse.ArgumentParser()
    add_recipe_arguments(recipe)
    given = {name: getattr(args, name) for name, default in vars(recipe.parse_args([])).items()
             if getattr(args, name) != default}  # fmt: skip
    if given and args.task == "pretraining":
        parser.error(f"--{next(iter(given))} is for --task finetuning")
    args.recipe_options = [f"--{name}" if value is True else f"--{name} {value}" for name, value in given.items()]
    defaults = (800.0, 4096) if args.task == "pretraining" else (100.0, 1024)
    args.num_train_epochs = args.num_train_epochs or defaults[0]
    args.total_batch_size = args.total_batch_size or defaults[1]
    if args.gpu_peak_tflops is not None and args.total_batch_size % args.num_gpus:
        parser.error(f"{args.num_gpus} GPUs cannot share a --total_batch_size of {args.total_batch_size} evenly")
    if args.output_file is not None and not Path(args.output_file).absolute().parent.is_dir():
        parser.error(f"--output_file {args.output_file}: there is no such folder")
    return args


def main(argv: list[str] | None = None) -> str:
    """Run the command line; return what it prints."""
    args = parse_arguments(argv)
    config = arguments.config_from_arguments(args, num_labels=args.num_labels)
    cost = measure(config, Recipe.from_arguments(args.task, args))
    plans = HARDWARE
    if args.gpu_peak_tflops is not None:
        plans = {f"{args.num_gpus} GPUs": Hardware(args.num_gpus, args.gpu_peak_tflops, args.bytes_per_gpu)}
    rows, commands = zip(*(plan_for(args, cost, name, hardware) for name, hardware in plans.items()))
    text = "\n\n".join([describe(args, cost), render_table(COLUMNS, rows), *commands])
    print(text)
    if args.output_file:
        record = as_record(args, cost, plans, commands)
        Path(args.output_file).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return text


def as_record(
    args: argparse.Namespace, cost: Cost, plans: Mapping[str, Hardware], commands: Sequence[str]
) -> dict[str, Any]:
    """Return what `--output_file` holds."""
    names = ("task", "pretext", "config_name", "num_images", "num_train_epochs", "total_batch_size", "utilization")
    records = []
    for (name, hardware), command in zip(plans.items(), commands):
        needed = hours(cost, args.num_images * args.num_train_epochs, hardware, args.utilization)
        times = {"hours": round(needed, 2), "gpu_hours": round(needed * hardware.num_gpus, 1)}
        records.append({"name": name, "num_gpus": hardware.num_gpus, **times, "command": command})
    return {**{name: getattr(args, name) for name in names}, **asdict(cost), "plans": records}


def plan_for(args: argparse.Namespace, cost: Cost, name: str, hardware: Hardware) -> tuple[list[str], str]:
    """Return the row of the table, and the command, for one choice of hardware."""
    images = args.num_images * args.num_train_epochs
    needed = hours(cost, images, hardware, args.utilization)
    num_workers = workers_per_gpu(args, cost, hardware)
    fits = [largest_batch(cost, hardware.bytes_per_gpu, args.memory_reserve, saves) for saves in (False, True)]
    split = split_batch(args.total_batch_size, hardware.num_gpus, fits[args.gradient_checkpointing])
    row = [
        name,
        f"{hardware.peak_tflops:g} {hardware.precision}",
        f"{hardware.bytes_per_gpu / 1e9:g} GB",
        f"{images / needed / 3600:,.0f}",
        f"{needed:,.1f}",
        f"{needed * hardware.num_gpus:,.0f}",
        str(num_workers),
        *(f"{batch:,}" for batch in fits),
        f"{split[0]} x {hardware.num_gpus} x {split[1]}" if split else "does not fit",
    ]
    if split is None:
        return row, f"# {name}: try --gradient_checkpointing; --launch fsdp2 shares out the weights"
    return row, f"# {name}, {needed:,.1f} hours\n{launch_command(args, hardware, split, num_workers)}"


def describe(args: argparse.Namespace, cost: Cost) -> str:
    """Say what is planned, what was counted and what is assumed."""
    what = f"{args.pretext.upper()} pretraining" if args.task == "pretraining" else "fine-tuning with the defense"
    if args.task == "finetuning" and args.train_on != "denoised":
        what = f"fine-tuning on {args.train_on} images"
    frozen = f", {cost.frozen_parameters / 1e6:,.1f} M frozen" if cost.frozen_parameters else ""
    images = args.num_images * args.num_train_epochs
    paragraphs = [
        f"{what}, {args.config_name}: {cost.trained_parameters / 1e6:,.1f} M parameters are trained{frozen}.",
        f"Run: {args.num_train_epochs:g} epochs of {args.num_images:,} images, {args.total_batch_size:,} per update:"
        f" {math.ceil(images / args.total_batch_size):,} updates, {in_flops(images * cost.step_flops)}.",
        f"An image: {in_flops(cost.forward_flops)} forward, {in_flops(cost.step_flops)} forward and backward"
        f"{' with the attack' if args.task == 'finetuning' and args.adversarial_steps else ''};"
        f" {cost.activation_bytes / 1e6:,.1f} MB of activations, {cost.checkpointed_bytes / 1e6:,.1f} MB with"
        " --gradient_checkpointing.",
        f"A GPU without images: {cost.static_bytes / 1e9:,.2f} GB, {BYTES_PER_TRAINED_PARAMETER} bytes for each"
        " trained parameter (weight, gradient, two moments of AdamW and DDP's copy of the gradient in float32, a copy"
        f" of the weight in half precision) and {BYTES_PER_FROZEN_PARAMETER} for each frozen one.",
        f"Assumed: GPUs reach {args.utilization:.0%} of their peak; {args.memory_reserve:.0%} of the memory is for all"
        f" else; a worker reads and augments {args.images_per_worker:g} images per second. Not counted: validation,"
        " checkpoints, start-up, and what --gradient_checkpointing computes twice (up to a third of the time).",
        "Columns: workers (--num_workers) feed one GPU; batches of a GPU that fit it, as they are and 'checkpointed'"
        " with --gradient_checkpointing; and what makes up an update.",
    ]
    return "\n".join(textwrap.fill(paragraph, 119, subsequent_indent="  ") for paragraph in paragraphs)


if __name__ == "__main__":
    run_command(main)
