# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Pretrain a denoiser by noisy image modeling (NIM, arXiv 2302.01056), or a masked autoencoder as its baseline.

    transformers-nim pretrain --dataset_name DATA --config_name tiny-patch4-32 --output_dir outputs/nim

Runs on one CPU or GPU; with `--launch` in several processes, on several nodes, with FSDP or DeepSpeed (`accelerate
launch -m transformers_nim.commands.pretrain` does the same; see examples/README.md). With `--resume_from_checkpoint
latest` an interrupted run continues exactly from its last checkpoint. Ctrl-C, SIGTERM and SIGUSR1 write one first,
after the next step, and print the command that goes on; a second Ctrl-C ends the run at once.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from .. import NIMForPreTraining
from ..conversion.vit_mae import load_vit_mae
from ..data.augmentation import pretraining_transform
from ..data.draws import Draw, NoiseDraw
from ..hub import training_results as publish
from ..model.noise import SigmaDistribution
from ..training import arguments, launch
from ..training.checkpoints import check_output_dir
from ..training.evaluation import evaluate_denoiser, evaluate_masked, judge_denoiser
from ..training.mae import MaskedAutoencoder, draw_mask
from ..training.objectives import denoising_loss, masking_loss
from ..training.optimization import parameter_groups
from ..training.plots import plot_reconstructions
from ..training.start import Start
from ..utils.cli import make_parser, run_command
from ..utils.interruption import deferred_signals
from ..utils.output_folder import hold_folder
from ..utils.seeding import seed_step
from ..utils.text_table import wrapped


SUMMARIES = {
    "nim": "A vision transformer pretrained to remove Gaussian noise from images (noisy image modeling).",
    "mae": "A masked autoencoder (MAE), trained as the baseline of noisy image modeling. Its decoder fills in hidden"
    " patches and is no denoiser.",
}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = make_parser(__doc__, packages=arguments.PACKAGES, module="transformers_nim.commands.pretrain")
    task = parser.add_argument_group("task")
    task.add_argument(
        "--pretext", choices=("nim", "mae"), default="nim", help="task: remove noise, or fill in hidden patches"
    )
    task.add_argument("--mask_ratio", type=float, default=0.75, help="share of the patches that MAE hides, in (0, 1)")
    arguments.add_sigma_arguments(task, "gamma with concentration 25 and scale 3: mean 75, s.d. 15")
    task.add_argument(
        "--init_from",
        "--model_name_or_path",
        help="pretraining checkpoint of NIM or ViT-MAE to start from, such as facebook/vit-mae-base",
    )
    arguments.add_config_arguments(parser)
    arguments.add_data_arguments(parser)
    arguments.add_augmentation_arguments(parser, crop_scale=(0.2, 1.0))
    arguments.add_optimization_arguments(parser, "pretraining")
    run = arguments.add_run_arguments(parser)
    run.add_argument("--image_steps", metavar="N|epoch", help="updates between plots; if left out, one at the end")
    return parser.parse_args(argv)


def read_start(args: argparse.Namespace) -> Start | None:
    """Return the checkpoint to start from; None for a new model or one of ViT-MAE."""
    source = {"cache_dir": args.cache_dir, "token": args.token}
    if args.init_from is None or AutoConfig.from_pretrained(args.init_from, **source).model_type == "vit_mae":
        return None
    return Start.read(args.init_from, **source)


def make_model(
    args: argparse.Namespace, start: Start | None, sigma: SigmaDistribution
) -> NIMForPreTraining | MaskedAutoencoder:
    """Return the model to train: new, or from a checkpoint."""
    denoiser = make_denoiser(args, start, sigma)
    return MaskedAutoencoder(denoiser, args.mask_ratio) if args.pretext == "mae" else denoiser


def make_denoiser(args: argparse.Namespace, start: Start | None, sigma: SigmaDistribution) -> NIMForPreTraining:
    """Return a denoiser: new, or from a checkpoint of NIM or ViT-MAE."""
    if args.init_from is None:
        return NIMForPreTraining(arguments.config_from_arguments(args, pretraining_sigma=sigma.to_dict()))
    overrides = arguments.parse_overrides(args.config_overrides) | {"pretraining_sigma": sigma.to_dict()}
    source = {"cache_dir": args.cache_dir, "token": args.token}
    if start is None:
        return load_vit_mae(args.init_from, **source, **overrides).float()
    # Mixed precision needs float32 weights, whatever the checkpoint holds.
    return NIMForPreTraining.from_pretrained(args.init_from, dtype=torch.float32, **source, **overrides)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the command, and return what `all_results.json` holds."""
    args = parse_arguments(argv)
    with hold_folder(args.output_dir, "--resume_from_checkpoint latest"):
        return pretrain(args)


def pretrain(args: argparse.Namespace) -> dict[str, Any]:
    """Pretrain a model, and return what `all_results.json` holds."""
    launch.check_arguments(args, args.init_from)
    if not 0 < args.mask_ratio < 1:
        raise ValueError(f"mask_ratio must be between 0 and 1, got {args.mask_ratio}")
    check_output_dir(args.output_dir, args.resume_from_checkpoint, args.overwrite_output_dir, args.init_from)
    start = read_start(args)
    sigma = arguments.training_sigma(args, "gamma", start.config.pretraining_sigma if start is not None else None)
    args.eval_sigmas = list(arguments.EVAL_SIGMAS) if args.eval_sigmas is None else args.eval_sigmas
    precision = launch.choose_precision(args)
    accelerator = launch.make_accelerator(args, precision)
    repository = publish.create_repository(args) if accelerator.is_main_process else None
    job = launch.TrainingJob.load("pretraining", args, accelerator, precision)

    seed_step(args.seed, 0, 0)
    model = make_model(args, start, sigma)
    config = model.config
    groups = parameter_groups(model, job.plan.learning_rate, args.weight_decay)
    run = job.start(model, groups, (0.9, 0.95), best_metric="loss", greater_is_better=False)

    rows = {"start": start.describe()} if start is not None else {}
    noise: Draw
    if args.pretext == "mae":
        objective, noise = partial(masking_loss, run.model), partial(draw_mask, config=config)
        rows |= {"mask": f"{args.mask_ratio:.0%} of the patches"}
    else:
        objective, noise = partial(denoising_loss, run.model), NoiseDraw(sigma)
        rows |= {"noise": f"sigma {arguments.describe_sigma(sigma)}, in units of 0..255 pixels"}
    job.announce(f"{args.pretext.upper()} pretraining", run, rows)

    def evaluate(model: MaskedAutoencoder | NIMForPreTraining, loader: Any) -> dict[str, float]:
        if isinstance(model, MaskedAutoencoder):
            return evaluate_masked(accelerator, model, loader)
        return evaluate_denoiser(accelerator, model, loader, args.eval_sigmas)

    def draw(model: MaskedAutoencoder | NIMForPreTraining, step: int, images: torch.Tensor) -> None:
        path = Path(args.output_dir) / "pictures" / f"step-{step}.png"
        plot_reconstructions(accelerator, model, images, args.eval_sigmas, path, f"{job.data.name}, step {step}")

    transform = pretraining_transform(config, args.crop_scale, args.horizontal_flip)
    image_steps = launch.steps_of("image_steps", args.image_steps, job.plan)
    with deferred_signals():
        job.fit(run, transform, noise, objective, evaluate, draw, image_steps)
        sentence = judge_denoiser(run.metrics, args.eval_sigmas) if args.pretext == "nim" and run.metrics else None
        if sentence is not None:
            accelerator.print(wrapped(sentence))
        summary = SUMMARIES[args.pretext]
        results = publish.save(run, args, job.plan, job.data, job.task, summary, repository, start)
    publish.push(run, args, job.task, repository)
    return results


if __name__ == "__main__":
    run_command(main)
