# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune a pretrained model to classify: with the De^3 defense (arXiv 2302.01056), or as one of its baselines.

    transformers-nim finetune --model_name_or_path outputs/nim --dataset_name DATA --output_dir outputs/de3

`--train_on denoised` trains a classifier with the defense, `smoothed` one that adds noise and does not denoise,
`noisy` and `clean` one without a defense. Each can be trained adversarially. Runs wherever pretraining does, and
resumes as exactly.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from .. import NIMForImageClassification, NIMForRobustImageClassification
from ..data.augmentation import LabelMixer, finetuning_transform
from ..data.draws import NoiseDraw
from ..hub import training_results as publish
from ..training import arguments, launch
from ..training.attack import TrainingAttack
from ..training.evaluation import evaluate_classifier, evaluate_denoiser, figure_name, gather_weights
from ..training.objectives import TRAIN_ON, ClassificationObjective
from ..training.optimization import parameter_groups
from ..training.plots import plot_reconstructions
from ..utils.cli import make_parser, run_command
from ..utils.seeding import seed_step
from ..utils.text_table import plural


SUMMARIES = {
    "denoised": "An image classifier with the De^3 defense: it adds noise to an image, denoises it and classifies the"
    " result. Fine-tuned on denoised images",
    "smoothed": "An image classifier with randomized smoothing and no denoiser: it adds noise to an image and"
    " classifies the noisy image. Fine-tuned on noisy images",
    "noisy": "An image classifier without a defense, fine-tuned on noisy images",
    "clean": "An image classifier without a defense, fine-tuned on clean images",
}
# Defaults of options that mean nothing without an attack.
UNATTACKED = {"adversarial_norm": "Linf", "adversarial_noise": "shared", "adversarial_warmup_ratio": 0.0}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = make_parser(__doc__, packages=(*arguments.PACKAGES, "timm"), module="transformers_nim.commands.finetune")
    task = parser.add_argument_group("task")
    add = task.add_argument
    add("--model_name_or_path", help="checkpoint to start from; if left out, a new model (not for denoised images)")
    add(
        "--ignore_mismatched_sizes",
        action="store_true",
        help="initialize weights of another shape, such as a head for other classes",
    )
    add(
        "--train_on",
        choices=TRAIN_ON,
        default="denoised",
        help="images that the classifier sees: denoised (De^3); noisy with noise in predictions too (smoothed, the"
        " baseline of De^3 without a denoiser: randomized smoothing, arXiv 1902.02918); noisy in training only; clean",
    )
    arguments.add_sigma_arguments(task, "uniform", "uniform from 0 to 30")
    add("--defense_sigma", type=float, default=70.0, help="sigma of the finished model, in units of 0..255 pixels")
    add("--drop_path_rate", type=float, default=0.1, help="rate of stochastic depth (huge models: 0.2)")
    arguments.add_attack_arguments(parser)
    arguments.add_draw_arguments(parser)
    arguments.add_config_arguments(parser)
    arguments.add_data_arguments(parser)
    add = arguments.add_augmentation_arguments(parser, crop_scale=(0.08, 1.0)).add_argument
    add("--auto_augment", default="rand-m9-mstd0.5-inc1", help="policy of timm, or 'none'")
    add("--random_erasing", type=float, default=0.25, help="its probability")
    add("--mixup", type=float, default=0.8, help="alpha of mixup; 0 for none")
    add("--cutmix", type=float, default=1.0, help="alpha of CutMix; 0 for none")
    add("--label_smoothing", type=float, default=0.1, help="probability mass spread over classes")
    add = arguments.add_optimization_arguments(parser, 5e-4, epochs=100, total_batch_size=1024).add_argument
    add("--min_learning_rate", type=float, default=1e-6, help="learning rate at the end of the cosine")
    add("--layer_decay", type=float, default=0.65, help="factor of the learning rate from each layer to the one below")
    add("--ema_decay", type=float, help="decay of an average of the weights, such as 0.9999; if left out, none")
    arguments.add_run_arguments(parser).add_argument(
        "--best_metric",
        help="figure that chooses best/, such as accuracy_sigma_25; if left out, accuracy at the first of"
        " --eval_sigmas, or accuracy_off with --train_on clean",
    )
    return parser.parse_args(argv)


def make_model(args: argparse.Namespace, label_names: list[str]) -> NIMForImageClassification:
    """Return the classifier to train, from a checkpoint or new; with the defense if it sees denoised images."""
    has_defense = args.train_on in ("denoised", "smoothed")
    cls = NIMForRobustImageClassification if has_defense else NIMForImageClassification
    fields: dict[str, Any] = {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
        "drop_path_rate": args.drop_path_rate,
        "finetuning_sigma": arguments.sigma_from_arguments(args).to_dict(),
        "defense_sigma": args.defense_sigma,
        "denoise": args.train_on != "smoothed",
        "freeze_denoiser": not args.train_denoiser,
    }
    if args.model_name_or_path is None:
        return cls(arguments.config_from_arguments(args, **fields))
    fields |= arguments.parse_overrides(args.config_overrides)
    return cls.from_pretrained(
        args.model_name_or_path,
        cache_dir=args.cache_dir,
        token=args.token,
        ignore_mismatched_sizes=args.ignore_mismatched_sizes,
        # Mixed precision needs float32 weights, whatever the checkpoint holds.
        dtype=torch.float32,
        **fields,
    )


def make_attack(args: argparse.Namespace, total_steps: int) -> TrainingAttack | None:
    """Return the attack on training images, or None.

    Args:
        args: Arguments of the command.
        total_steps: Number of updates.

    Raises:
        ValueError: An argument is out of range.
    """
    if not 0 <= args.adversarial_warmup_ratio <= 1:
        raise ValueError(f"adversarial_warmup_ratio must be from 0 to 1, got {args.adversarial_warmup_ratio}")
    if not args.adversarial_steps:
        unused = [name for name, value in UNATTACKED.items() if getattr(args, name) != value]
        if unused:
            raise ValueError(f"{', '.join(unused)} need an attack; pass --adversarial_steps too")
        return None
    return TrainingAttack(
        eps=args.adversarial_eps / 255,
        steps=args.adversarial_steps,
        step_size=None if args.adversarial_step_size is None else args.adversarial_step_size / 255,
        norm=args.adversarial_norm,
        # Without noise there is nothing else.
        through_defense=args.train_on != "clean" and args.adversarial_through == "defense",
        shared_noise=args.adversarial_noise == "shared",
        warmup_steps=round(args.adversarial_warmup_ratio * total_steps),
    )


def make_noise(args: argparse.Namespace, attack: TrainingAttack | None) -> NoiseDraw | None:
    """Return what is drawn for each training image, or None for nothing."""
    if args.train_on == "clean" and attack is None:
        return None
    return NoiseDraw(
        sigma=None if args.train_on == "clean" else arguments.sigma_from_arguments(args),
        num_draws=args.num_training_draws,
        attack_norm=attack.norm if attack is not None else None,
        for_attack=attack is not None and attack.through_defense and not attack.shared_noise,
    )


def choose_best_metric(args: argparse.Namespace) -> str:
    """Return the figure that chooses the best model.

    Raises:
        ValueError: It is none that is measured.
    """
    sigma = args.eval_sigmas[0] if args.eval_sigmas and args.train_on != "clean" else None
    chosen = args.best_metric or figure_name("accuracy", sigma)
    measured = [figure_name("accuracy", sigma) for sigma in (None, *args.eval_sigmas)]
    if chosen not in measured:
        # Checked now, because the first validation may be at the end.
        raise ValueError(f"best_metric must be one of {measured}, got {chosen!r}")
    return chosen


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the command, and return what `all_results.json` holds."""
    args = parse_arguments(argv)
    launch.check_arguments(args, args.model_name_or_path)
    arguments.sigma_from_arguments(args)
    if args.model_name_or_path is None and args.train_on == "denoised":
        raise ValueError("--train_on denoised needs a denoiser: pass --model_name_or_path of a pretrained model")
    precision = launch.choose_precision(args)
    accelerator = launch.make_accelerator(args, precision)
    arguments.check_draws(args)
    if args.denoising_weight and accelerator.distributed_type.value == "DEEPSPEED":
        raise ValueError("denoising_weight does not work with DeepSpeed; FSDP2 (--launch fsdp2) shares weights too")
    best_metric = choose_best_metric(args)
    repository = publish.create_repository(args) if accelerator.is_main_process else None
    job = launch.TrainingJob.load("finetuning", args, accelerator, precision)
    data, num_labels = job.data, len(job.data.label_names)
    if args.per_device_train_batch_size % 2 and (args.mixup or args.cutmix):
        raise ValueError("mixup and CutMix pair images: make --per_device_train_batch_size even, or switch both off")
    attack = make_attack(args, job.plan.total_steps)
    noise = make_noise(args, attack)

    seed_step(args.seed, 0, 0)
    model = make_model(args, data.label_names)
    config = model.config
    groups = parameter_groups(
        model,
        job.plan.learning_rate,
        args.weight_decay,
        args.layer_decay,
        args.denoiser_learning_rate_factor,
        args.denoiser_layer_decay,
    )
    run = job.start(
        model, groups, (0.9, 0.999), best_metric, ema_decay=args.ema_decay, min_learning_rate=args.min_learning_rate
    )
    mix_labels = LabelMixer(num_labels, args.mixup, args.cutmix, args.label_smoothing)
    objective = ClassificationObjective(
        run.model,
        run.inner_model,
        args.train_on,
        mix_labels,
        attack,
        args.draw_loss,
        args.consistency_weight,
        args.consistency_entropy,
        args.denoising_weight,
        accelerator.autocast,
    )

    rows = {"trained on": f"{args.train_on} images of {plural(num_labels, 'class')}"}
    if args.train_on != "clean":
        rows["noise"] = arguments.describe_sigma(arguments.sigma_from_arguments(args))
    if attack is not None:
        rows["attack"] = str(attack)
    rows["layers"] = ", ".join(f"{group['name']} {group['lr']:.2g}" for group in groups if group["weight_decay"])
    job.announce("Fine-tuning", run, rows)

    def evaluate(model: NIMForImageClassification, loader: Any) -> dict[str, float]:
        figures = evaluate_classifier(accelerator, model, loader, [None, *args.eval_sigmas])
        if args.train_denoiser:
            # A denoiser that has stopped to denoise is seen.
            gather_weights(model)
            assert isinstance(model, NIMForRobustImageClassification)
            assert model.denoiser is not None
            measured = evaluate_denoiser(accelerator, model.denoiser, loader, args.eval_sigmas)
            figures |= {name: value for name, value in measured.items() if name.startswith("psnr")}
        return figures

    def draw(model: NIMForRobustImageClassification, step: int, images: torch.Tensor) -> None:
        path = Path(args.output_dir) / "pictures" / "denoised.png"
        assert model.denoiser is not None
        plot_reconstructions(accelerator, model.denoiser, images, args.eval_sigmas, path, data.name)

    policy = None if args.auto_augment == "none" else args.auto_augment
    transform = finetuning_transform(config, args.crop_scale, args.horizontal_flip, policy, args.random_erasing)
    job.fit(run, transform, noise, objective, evaluate, draw if args.train_on == "denoised" else None)
    attacked = f", adversarially ({attack})" if attack is not None else ""
    return publish.finish(run, args, job.plan, data, job.task, f"{SUMMARIES[args.train_on]}{attacked}.", repository)


if __name__ == "__main__":
    run_command(main)
