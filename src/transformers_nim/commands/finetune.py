# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Fine-tunes a pretrained model to classify: with the De^3 defense (arXiv 2302.01056), or as one of its baselines.

    accelerate launch examples/finetune.py --model_name_or_path outputs/nim --dataset_name DATA --output_dir outputs/d

`--train_on denoised` makes a classifier with the defense, `noisy` and `clean` make one without; each can be trained
adversarially. Runs wherever examples/pretrain.py does, and resumes as exactly.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from .. import NIMForImageClassification, NIMForRobustImageClassification, NIMImageProcessor
from ..data.augmentation import LabelMixer, finetuning_transform
from ..data.images import evaluation_loader, first_images, training_batches
from ..hub import training_results as publish
from ..model.noise import add_noise, draw_noise
from ..training import arguments, launch
from ..training.adversarial import adversarial_images
from ..training.evaluation import evaluate_classifier, sigma_name
from ..training.optimization import make_optimizer, parameter_groups
from ..training.plots import plot_reconstructions
from ..training.run import TrainingRun
from ..utils.cli import make_parser
from ..utils.seeding import derive_seed_32, image_generators, seed_step


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    task = parser.add_argument_group("task")
    task.add_argument(
        "--model_name_or_path",
        help="checkpoint to start from: of pretraining, or a classifier; left out, a new model (for 'clean', 'noisy')",
    )
    task.add_argument(
        "--ignore_mismatched_sizes",
        action="store_true",
        help="begin anew with weights whose shape differs, such as the head of a classifier for other classes",
    )
    task.add_argument(
        "--train_on",
        choices=("denoised", "noisy", "clean"),
        default="denoised",
        help="what the classifier sees: images with noise that the denoiser has removed (De^3), with noise, or as they"
        " are",
    )
    arguments.add_sigma_arguments(task, "uniform", "uniform from 0 to 30")
    task.add_argument(
        "--defense_sigma",
        type=float,
        default=70.0,
        help="sigma of the finished model's predictions, in units of 0..255 pixels",
    )
    task.add_argument("--drop_path_rate", type=float, default=0.1, help="stochastic depth (huge models: 0.2)")
    task.add_argument(
        "--adversarial_steps", type=int, default=0, help="train on PGD images of so many steps; 0 for none"
    )
    task.add_argument("--adversarial_eps", type=float, default=8.0, help="their Linf radius in x/255")
    task.add_argument("--adversarial_step_size", type=float, help="in x/255; 2.5 x eps / steps by default")
    task.add_argument(
        "--adversarial_through",
        choices=("defense", "classifier"),
        default="defense",
        help="attack noise, denoiser and classifier, or the bare classifier",
    )
    arguments.add_config_arguments(parser)
    arguments.add_data_arguments(parser)
    augmentation = arguments.add_augmentation_arguments(parser, crop_scale=(0.08, 1.0))
    augmentation.add_argument("--auto_augment", default="rand-m9-mstd0.5-inc1", help="a policy of timm, or 'none'")
    augmentation.add_argument("--random_erasing", type=float, default=0.25, help="probability")
    augmentation.add_argument("--mixup", type=float, default=0.8, help="alpha; 0 for none")
    augmentation.add_argument("--cutmix", type=float, default=1.0, help="alpha; 0 for none")
    augmentation.add_argument(
        "--label_smoothing", type=float, default=0.1, help="probability mass spread over classes"
    )
    optimization = arguments.add_optimization_arguments(
        parser, base_learning_rate=5e-4, epochs=100, total_batch_size=1024
    )
    optimization.add_argument("--min_learning_rate", type=float, default=1e-6, help="where the cosine ends")
    optimization.add_argument(
        "--layer_decay", type=float, default=0.65, help="factor of the learning rate from each layer to the one below"
    )
    optimization.add_argument("--ema_decay", type=float, help="average the weights with this decay (0.9999, say)")
    run = arguments.add_run_arguments(parser)
    run.add_argument(
        "--best_metric",
        help="figure by which best/ is chosen, such as accuracy_sigma_25; if left out, accuracy at the first of"
        " --eval_sigmas, or accuracy_off with --train_on clean",
    )
    return parser.parse_args(argv)


def make_model(args: argparse.Namespace, label_names: list[str]) -> NIMForImageClassification:
    """A classifier that starts from a checkpoint, with the defense if it is to see denoised images."""
    cls = NIMForRobustImageClassification if args.train_on == "denoised" else NIMForImageClassification
    fields = {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
        "drop_path_rate": args.drop_path_rate,
        "finetuning_sigma": arguments.sigma_from_arguments(args).to_dict(),
        "defense_sigma": args.defense_sigma,
    }
    if args.model_name_or_path is None:
        if args.train_on == "denoised":
            raise ValueError("--train_on denoised needs a denoiser: pass --model_name_or_path of a pretrained model")
        return cls(arguments.config_from_arguments(args, **fields))
    fields |= arguments.parse_overrides(args.config_overrides)
    return cls.from_pretrained(
        args.model_name_or_path,
        cache_dir=args.cache_dir,
        token=args.token,
        ignore_mismatched_sizes=args.ignore_mismatched_sizes,
        # Whatever the checkpoint was saved in: mixed precision needs weights in float32.
        dtype=torch.float32,
        **fields,
    )


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """The command line; returns what `all_results.json` holds."""
    args = parse_arguments(argv)
    precision = launch.choose_precision(args)
    accelerator = launch.make_accelerator(args, precision)
    repository = publish.create_repository(args) if accelerator.is_main_process else None

    # Data, model and plan.
    data = launch.load_data(args, with_labels=True)
    seed_step(args.seed, 0, 0)
    classifier = make_model(args, data.label_names)
    config = classifier.config
    image_processor = NIMImageProcessor.from_config(config)
    plan = launch.make_plan(args, data, accelerator.num_processes)
    if args.per_device_train_batch_size % 2 and (args.mixup or args.cutmix):
        raise ValueError("mixup and CutMix pair images: make --per_device_train_batch_size even, or switch both off")
    groups = parameter_groups(classifier, plan.learning_rate, args.weight_decay, args.layer_decay)
    optimizer = make_optimizer(groups, betas=(0.9, 0.999))
    ema = launch.make_average(accelerator, classifier, args.ema_decay)
    model, optimizer, schedule = launch.prepare(accelerator, args, plan, classifier, optimizer, args.min_learning_rate)
    eval_sigmas: list[float | None] = [None, *args.eval_sigmas]
    best_sigma = args.eval_sigmas[0] if args.eval_sigmas and args.train_on != "clean" else None
    best_metric = args.best_metric or f"accuracy_{sigma_name(best_sigma)}"
    measured = [f"accuracy_{sigma_name(sigma)}" for sigma in eval_sigmas]
    if best_metric not in measured:
        # Now, not at the first validation, which can be at the end.
        raise ValueError(f"best_metric must be one of {measured}, got {best_metric!r}")
    options = launch.run_options(args, plan, data, best_metric, greater_is_better=True)
    run = TrainingRun(accelerator, options, model, optimizer, schedule, image_processor, ema)

    sigma = arguments.sigma_from_arguments(args)
    rows = {"trained on": f"{args.train_on} images of {len(data.label_names)} classes"}
    if args.train_on != "clean":
        rows["noise"] = f"{sigma.to_dict()}, mean {sigma.mean:g}, in units of 0..255 pixels"
    if args.adversarial_steps:
        through = args.adversarial_through if args.train_on == "denoised" else "classifier"
        rows["attack"] = f"PGD-{args.adversarial_steps}, Linf {args.adversarial_eps:g}/255, through the {through}"
    rows["layers"] = ", ".join(f"{group['name']} {group['lr']:.2g}" for group in groups if group["weight_decay"])
    launch.print_header(
        accelerator, "Fine-tuning", launch.describe_run(accelerator, args, plan, data, classifier, precision) | rows
    )
    launch.start_trackers(accelerator, "nim-finetuning", args)
    mix_labels = LabelMixer(len(data.label_names), args.mixup, args.cutmix, args.label_smoothing)

    # What a step learns: classes of images that are mixed, attacked, made noisy and denoised, in this order.
    def compute_loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        pixel_values, labels = mix_labels(batch["pixel_values"], batch["labels"])
        if args.adversarial_steps:
            through = {}
            if args.train_on == "denoised":
                through = {"sigma": sigma if args.adversarial_through == "defense" else None}
            pixel_values = adversarial_images(
                run.inner_model,
                pixel_values,
                labels,
                args.adversarial_eps,
                args.adversarial_steps,
                args.adversarial_step_size,
                seed=derive_seed_32(args.seed, "attack", run.step, int(batch["noise_seed"][0])),
                **through,
            )
        if args.train_on == "clean":
            return model(pixel_values, labels=labels).loss
        generators = image_generators(batch["noise_seed"], device=accelerator.device)
        drawn, pixel_noise = draw_noise(pixel_values, sigma, generator=generators)
        if args.train_on == "noisy":
            return model(add_noise(pixel_values, drawn[:, 0], pixel_noise[:, 0], config.image_std), labels=labels).loss
        return model(pixel_values, labels=labels, sigma=drawn[:, 0], pixel_noise=pixel_noise[:, 0]).loss

    evaluate = draw = None
    if data.validation is not None:
        loader = accelerator.prepare_data_loader(
            evaluation_loader(
                data, config.num_channels, image_processor, args.per_device_eval_batch_size, args.num_workers
            )
        )

        def evaluate(model: torch.nn.Module) -> dict[str, float]:
            return evaluate_classifier(accelerator, model, loader, eval_sigmas)

        def draw(model: torch.nn.Module, step: int) -> None:
            if args.train_on == "denoised":
                path = Path(args.output_dir) / "pictures" / "denoised.png"
                shown = first_images(loader.dataset).to(accelerator.device)
                plot_reconstructions(accelerator, model.denoiser, shown, args.eval_sigmas, path, data.name)

    policy = None if args.auto_augment == "none" else args.auto_augment
    transform = finetuning_transform(config, args.crop_scale, args.horizontal_flip, policy, args.random_erasing)
    run.fit(
        lambda first_batch: training_batches(
            data,
            config.num_channels,
            transform,
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
    )
    attacked = f", adversarially ({rows['attack']})" if args.adversarial_steps else ""
    summary = {
        "denoised": "An image classifier with the De^3 defense: it adds noise to an image, denoises it and classifies"
        f" the result. Fine-tuned on denoised images{attacked}.",
        "noisy": f"An image classifier without a defense, fine-tuned on noisy images{attacked}.",
        "clean": f"An image classifier without a defense, fine-tuned on clean images{attacked}.",
    }[args.train_on]
    return publish.finish(run, args, plan, data, "finetuning", summary, repository)
