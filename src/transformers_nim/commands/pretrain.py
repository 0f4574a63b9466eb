# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Pretrains a denoiser by noisy image modeling (NIM, arXiv 2302.01056), or a masked autoencoder as its baseline.

    accelerate launch examples/pretrain.py --dataset_name DATA --config_name tiny-patch4-32 --output_dir outputs/nim

Runs on one CPU, one GPU, several nodes, FSDP or DeepSpeed; see examples/README.md. An interrupted run goes on exactly
where its last checkpoint was, with `--resume_from_checkpoint latest`.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from .. import NIMForPreTraining, NIMImageProcessor
from ..conversion.vit_mae import load_vit_mae
from ..data.augmentation import pretraining_transform
from ..data.images import evaluation_loader, first_images, training_batches
from ..hub import training_results as publish
from ..model.noise import draw_noise
from ..training import arguments, launch
from ..training.evaluation import evaluate_denoiser, evaluate_masked
from ..training.mae import MaskedAutoencoder
from ..training.optimization import make_optimizer, parameter_groups
from ..training.plots import plot_reconstructions
from ..training.run import TrainingRun
from ..utils.cli import make_parser
from ..utils.seeding import image_generators, seed_step


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    task = parser.add_argument_group("task")
    task.add_argument("--pretext", choices=("nim", "mae"), default="nim", help="denoise, or fill in hidden patches")
    task.add_argument("--mask_ratio", type=float, default=0.75, help="part of the patches that MAE hides")
    arguments.add_sigma_arguments(task, "gamma", "gamma with concentration 25 and scale 3: mean 75, s.d. 15")
    task.add_argument(
        "--init_from",
        "--model_name_or_path",
        help="start from the weights of a NIM or ViT-MAE pretraining checkpoint (such as facebook/vit-mae-base)",
    )
    arguments.add_config_arguments(parser)
    arguments.add_data_arguments(parser)
    arguments.add_augmentation_arguments(parser, crop_scale=(0.2, 1.0))
    arguments.add_optimization_arguments(parser, base_learning_rate=1.5e-4, epochs=800, total_batch_size=4096)
    run = arguments.add_run_arguments(parser)
    run.add_argument("--image_steps", metavar="N|epoch", help="updates between pictures; if left out, at the end")
    return parser.parse_args(argv)


def make_model(args: argparse.Namespace) -> NIMForPreTraining:
    """A new model, or one that starts from a checkpoint."""
    sigma = arguments.sigma_from_arguments(args).to_dict()
    if args.init_from is None:
        return NIMForPreTraining(arguments.config_from_arguments(args, pretraining_sigma=sigma))
    overrides = arguments.parse_overrides(args.config_overrides) | {"pretraining_sigma": sigma}
    source = {"cache_dir": args.cache_dir, "token": args.token}
    if AutoConfig.from_pretrained(args.init_from, **source).model_type == "vit_mae":
        return load_vit_mae(args.init_from, **source, **overrides).float()
    # Whatever the checkpoint was saved in: mixed precision needs weights in float32.
    return NIMForPreTraining.from_pretrained(args.init_from, dtype=torch.float32, **source, **overrides)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """The command line; returns what `all_results.json` holds."""
    args = parse_arguments(argv)
    precision = launch.choose_precision(args)
    accelerator = launch.make_accelerator(args, precision)
    repository = publish.create_repository(args) if accelerator.is_main_process else None

    # Model, data and plan.
    seed_step(args.seed, 0, 0)
    denoiser = make_model(args)
    config = denoiser.config
    model = MaskedAutoencoder(denoiser, args.mask_ratio) if args.pretext == "mae" else denoiser
    image_processor = NIMImageProcessor.from_config(config)
    data = launch.load_data(args, with_labels=False)
    plan = launch.make_plan(args, data, accelerator.num_processes)
    groups = parameter_groups(model, plan.learning_rate, args.weight_decay)
    optimizer = make_optimizer(groups, betas=(0.9, 0.95))
    model, optimizer, schedule = launch.prepare(accelerator, args, plan, model, optimizer)
    options = launch.run_options(args, plan, data, best_metric="loss", greater_is_better=False)
    run = TrainingRun(accelerator, options, model, optimizer, schedule, image_processor)

    sigma = arguments.sigma_from_arguments(args)
    noise = {"noise": f"{sigma.to_dict()}, mean {sigma.mean:g}, in units of 0..255 pixels"}
    launch.print_header(
        accelerator,
        f"{args.pretext.upper()} pretraining",
        launch.describe_run(accelerator, args, plan, data, denoiser, precision)
        | (noise if args.pretext == "nim" else {"mask": f"{args.mask_ratio:.0%} of the patches"}),
    )
    launch.start_trackers(accelerator, "nim-pretraining", args)

    # What a step learns: to restore images, each under noise of its own.
    def compute_loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        pixel_values = batch["pixel_values"]
        generators = image_generators(batch["noise_seed"], device=accelerator.device)
        if args.pretext == "mae":
            num_patches = config.patch_grid[0] * config.patch_grid[1]
            scores = [torch.rand(num_patches, generator=g, device=accelerator.device) for g in generators]
            return model(pixel_values, mask_scores=torch.stack(scores)).loss
        drawn, pixel_noise = draw_noise(pixel_values, sigma, generator=generators)
        return model(pixel_values, sigma=drawn[:, 0], pixel_noise=pixel_noise[:, 0]).loss

    # What is measured and drawn on validation images.
    evaluate = draw = None
    if data.validation is not None:
        loader = accelerator.prepare_data_loader(
            evaluation_loader(
                data, config.num_channels, image_processor, args.per_device_eval_batch_size, args.num_workers
            )
        )

        def evaluate(model: torch.nn.Module) -> dict[str, float]:
            if args.pretext == "mae":
                return evaluate_masked(accelerator, model, loader)
            return evaluate_denoiser(accelerator, model, loader, args.eval_sigmas)

        def draw(model: torch.nn.Module, step: int) -> None:
            path = Path(args.output_dir) / "pictures" / f"step-{step}.png"
            shown = first_images(loader.dataset).to(accelerator.device)
            plot_reconstructions(accelerator, model, shown, args.eval_sigmas, path, f"{data.name}, step {step}")

    run.fit(
        lambda first_batch: training_batches(
            data,
            config.num_channels,
            pretraining_transform(config, args.crop_scale, args.horizontal_flip),
            args.per_device_train_batch_size,
            args.seed,
            accelerator.num_processes,
            accelerator.process_index,
            first_batch,
            args.num_workers,
            pin_memory=accelerator.device.type == "cuda",
        ),
        compute_loss,
        evaluate,
        draw,
        launch.steps_of("image_steps", args.image_steps, plan),
    )
    summary = {
        "nim": "A vision transformer pretrained to remove Gaussian noise from images (noisy image modeling).",
        "mae": "A masked autoencoder (MAE), trained as the baseline of noisy image modeling. Its decoder fills in"
        " hidden patches and is no denoiser.",
    }[args.pretext]
    return publish.finish(run, args, plan, data, "pretraining", summary, repository)
