# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune a pretrained model to classify: with the De^3 defense (arXiv 2302.01056), or as one of its baselines.

    transformers-nim finetune --model_name_or_path outputs/nim --dataset_name DATA --output_dir outputs/de3

`--train_on denoised` trains a classifier with the defense, `smoothed` one that adds noise and does not denoise,
`noisy` and `clean` one without a defense. Each can be trained adversarially. Runs wherever pretraining does, and
resumes as exactly.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import NIMForImageClassification, NIMForRobustImageClassification
from ..attacks.geometry import DEFAULT_EPS
from ..data.augmentation import LabelMixer, finetuning_transform
from ..data.draws import NoiseDraw
from ..data.picture_folders import picture_splits
from ..hub import training_results as publish
from ..model.noise import SigmaDistribution, parse_sigma
from ..training import arguments, launch
from ..training.attack import TrainingAttack
from ..training.checkpoints import check_output_dir
from ..training.evaluation import (
    evaluate_classifier,
    evaluate_denoiser,
    figure_name,
    gather_weights,
    judge_defense,
    judge_denoiser,
)
from ..training.objectives import TRAIN_ON, ClassificationObjective
from ..training.optimization import parameter_groups
from ..training.plots import plot_reconstructions
from ..training.start import Start
from ..utils.cli import make_parser, run_command
from ..utils.interruption import deferred_signals
from ..utils.output_folder import hold_folder
from ..utils.seeding import seed_step
from ..utils.text_table import plural, wrapped


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
        help="initialize weights of another shape; a head for other classes is new by itself",
    )
    add(
        "--train_on",
        choices=TRAIN_ON,
        help="images that the classifier sees: denoised (De^3); noisy with noise in predictions too (smoothed, the"
        " baseline of De^3 without a denoiser: randomized smoothing, arXiv 1902.02918); noisy in training only; clean."
        " If left out, those that the checkpoint was trained on, and denoised ones for a pretrained model",
    )
    arguments.add_sigma_arguments(task, "uniform from 0 to 30")
    add(
        "--defense_sigma",
        type=float,
        help="sigma of the finished model, in units of 0..255 pixels; if left out, the checkpoint's, or 70",
    )
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
    add = arguments.add_optimization_arguments(parser, "finetuning").add_argument
    add("--min_learning_rate", type=float, default=1e-6, help="learning rate at the end of the cosine")
    add("--layer_decay", type=float, default=0.65, help="factor of the learning rate from each layer to the one below")
    add("--ema_decay", type=float, help="decay of an average of the weights, such as 0.9999; if left out, none")
    arguments.add_run_arguments(parser).add_argument(
        "--best_metric",
        help="figure that chooses best/, such as accuracy_sigma_25; if left out, accuracy at the defense's sigma if it"
        " is one of --eval_sigmas, else at the first of them, or accuracy_off with --train_on clean",
    )
    args = parser.parse_args(argv)
    if args.adversarial_eps is None:
        args.adversarial_eps = DEFAULT_EPS[args.adversarial_norm]
    return args


def read_start(args: argparse.Namespace) -> Start | None:
    """Return the checkpoint to start from, or None, and set the arguments that follow from it if they were left out.

    Raises:
        OSError: There is no such checkpoint.
        ValueError: It lacks the denoiser that is needed.
    """
    start = None
    if args.model_name_or_path is not None:
        start = Start.read(args.model_name_or_path, args.cache_dir, args.token)
    if args.train_on is None:
        args.train_on = start.usual_images if start is not None else "denoised"
    if args.train_on == "denoised" and start is None:
        raise ValueError("--train_on denoised needs a denoiser: pass --model_name_or_path of a pretrained model")
    if args.train_on == "denoised" and start is not None and not start.has_denoiser:
        raise ValueError(
            f"{args.model_name_or_path} has no denoiser, which --train_on denoised needs: start from a pretrained"
            " model, put one in front of this classifier (NIMForRobustImageClassification.from_denoiser), or pass"
            f" --train_on {start.usual_images}"
        )
    if args.defense_sigma is None:
        args.defense_sigma = start.config.defense_sigma if start is not None else 70.0
        constant = args.defense_sigma or {}
        if isinstance(constant, dict) and constant.get("type") == "constant":
            args.defense_sigma = float(constant["value"])
    if args.eval_sigmas is None:
        defense = [args.defense_sigma] if isinstance(args.defense_sigma, float) and args.defense_sigma > 0 else []
        args.eval_sigmas = sorted({*arguments.EVAL_SIGMAS, *defense})
    return start


def inherited(args: argparse.Namespace, given: argparse.Namespace, start: Start) -> str:
    """Return in words what the checkpoint decides.

    Args:
        args: Arguments, complete.
        given: Arguments as they were given.
        start: The checkpoint.
    """
    config, parts = start.config, [f"{args.train_on} images"] if given.train_on is None else []
    if args.train_on in ("denoised", "smoothed"):
        if given.defense_sigma is None:
            sigma = config.defense_sigma
            parts.append(
                f"defense {'off' if sigma is None else 'sigma ' + arguments.describe_sigma(parse_sigma(sigma))}"
            )
        parts.append(f"{plural(config.num_samples, 'noise draw')} per prediction ({config.vote} vote)")
    if arguments.is_sigma_left_out(given) and args.train_on != "clean" and config.finetuning_sigma is not None:
        parts.append(f"sigma of training {arguments.describe_sigma(parse_sigma(config.finetuning_sigma))}")
    return ", ".join([*parts, f"images of {'x'.join(map(str, config.image_shape))}"])


def header_rows(
    args: argparse.Namespace,
    given: argparse.Namespace,
    start: Start | None,
    label_names: list[str],
    sigma: SigmaDistribution,
) -> dict[str, str]:
    """Return what the header says of the start and of the images, by the names of its lines."""
    rows: dict[str, str] = {}
    if start is not None:
        rows |= {"start": start.describe(), "inherited": inherited(args, given, start)}
        rows["head"] = start.describe_head(label_names)
    names = ", ".join(label_names[:5]) + (", ..." if len(label_names) > 5 else "")
    rows["trained on"] = f"{args.train_on} images of {plural(len(label_names), 'class')} ({names})"
    if args.train_on != "clean":
        rows["noise"] = f"sigma {arguments.describe_sigma(sigma)}, in units of 0..255 pixels"
    return rows


def make_model(
    args: argparse.Namespace, label_names: list[str], start: Start | None, sigma: SigmaDistribution
) -> NIMForImageClassification:
    """Return the classifier to train, from a checkpoint or new; with the defense if it sees denoised images.

    Raises:
        ValueError: Weights of the checkpoint other than those of the head have other sizes.
    """
    has_defense = args.train_on in ("denoised", "smoothed")
    cls = NIMForRobustImageClassification if has_defense else NIMForImageClassification
    fields: dict[str, Any] = {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
        "drop_path_rate": args.drop_path_rate,
        "finetuning_sigma": sigma.to_dict(),
        "defense_sigma": args.defense_sigma,
        "denoise": args.train_on != "smoothed",
        "freeze_denoiser": not args.train_denoiser,
    }
    if start is None:
        return cls(arguments.config_from_arguments(args, **fields))
    fields |= arguments.parse_overrides(args.config_overrides)
    loaded: Any = cls.from_pretrained(
        args.model_name_or_path,
        cache_dir=args.cache_dir,
        token=args.token,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        # Mixed precision needs float32 weights, whatever the checkpoint holds.
        dtype=torch.float32,
        **fields,
    )
    model, info = loaded
    # By name, with the shapes in the checkpoint and in the model.
    counts = len(start.label_names), len(label_names)
    others = [name for name, old, new in info["mismatched_keys"] if (old[0], new[0]) != counts or old[1:] != new[1:]]
    if others and not args.ignore_mismatched_sizes:
        raise ValueError(
            f"{args.model_name_or_path} has weights of other sizes than this model: {', '.join(sorted(others)[:5])};"
            " pass --ignore_mismatched_sizes to initialize them anew"
        )
    if counts[0] == counts[1] and start.has_other_classes(label_names) and model.config.classifier_config is None:
        # As many classes, but others: the old head would begin with wrong answers.
        model.classifier = torch.nn.Linear(model.classifier.in_features, len(label_names))
        model._init_weights(model.classifier)
    return model


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


def make_noise(args: argparse.Namespace, attack: TrainingAttack | None, sigma: SigmaDistribution) -> NoiseDraw | None:
    """Return what is drawn for each training image, or None for nothing."""
    if args.train_on == "clean" and attack is None:
        return None
    return NoiseDraw(
        sigma=None if args.train_on == "clean" else sigma,
        num_draws=args.num_training_draws,
        attack_norm=attack.norm if attack is not None else None,
        for_attack=attack is not None and attack.through_defense and not attack.shared_noise,
    )


def choose_best_metric(args: argparse.Namespace) -> str:
    """Return the figure that chooses the best model.

    Raises:
        ValueError: It is none that is measured.
    """
    sigma = None
    if args.eval_sigmas and args.train_on != "clean":
        sigma = args.defense_sigma if args.defense_sigma in args.eval_sigmas else args.eval_sigmas[0]
    chosen = args.best_metric or figure_name("accuracy", sigma)
    measured = [figure_name("accuracy", sigma) for sigma in (None, *args.eval_sigmas)]
    if chosen not in measured:
        # Checked now, because the first validation may be at the end.
        raise ValueError(f"best_metric must be one of {measured}, got {chosen!r}")
    return chosen


def make_evaluation(args: argparse.Namespace, accelerator: Any) -> Callable[..., dict[str, float]]:
    """Return a function from a model and `loader`, the validation images, to figures by name."""
    # Of the denoiser, which changes only if it is trained.
    denoised: dict[str, float] = {}

    def evaluate(model: NIMForImageClassification, loader: Any) -> dict[str, float]:
        figures = evaluate_classifier(accelerator, model, loader, [None, *args.eval_sigmas])
        if args.train_on == "denoised" and (args.train_denoiser or not denoised):
            # One that does not suit the pictures, or has stopped to denoise, is seen.
            gather_weights(model)
            assert isinstance(model, NIMForRobustImageClassification)
            assert model.denoiser is not None
            measured = evaluate_denoiser(accelerator, model.denoiser, loader, args.eval_sigmas)
            denoised.update({name: value for name, value in measured.items() if name.startswith("psnr")})
        return figures | denoised

    return evaluate


def judge(figures: dict[str, float], args: argparse.Namespace) -> list[str]:
    """Return lines on what denoiser and defense do on the validation images, and on what to do next."""
    sentences = []
    if figures and args.train_on == "denoised":
        sentence = judge_denoiser(figures, args.eval_sigmas)
        if sentence is not None and "no better" in sentence:
            sentence += (
                " It was pretrained on other pictures or noise. Pretrain it on yours (transformers-nim pretrain"
                f" --init_from {args.model_name_or_path} ...), and start from that."
            )
        sentences += [sentence] if sentence is not None else []
    has_defense = args.train_on in ("denoised", "smoothed")
    if figures and has_defense and args.eval_sigmas:
        sigma = args.defense_sigma if args.defense_sigma in args.eval_sigmas else args.eval_sigmas[0]
        sentences.append(judge_defense(figures, sigma))
    data = "--dataset_name FOLDER_OF_OTHER_PICTURES"
    if args.train_dir is not None and "test" in (picture_splits(args.train_dir) or {}):
        data = f"--dataset_name {args.train_dir}"
    return [
        *map(wrapped, sentences),
        "How it withstands attacks is not known yet; this measures it:",
        f"  transformers-nim evaluate --model_name_or_path {args.output_dir} {data} --output_dir"
        f" {Path(args.output_dir) / 'robustness'}",
    ]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the command, and return what `all_results.json` holds."""
    args = parse_arguments(argv)
    with hold_folder(args.output_dir, "--resume_from_checkpoint latest"):
        return finetune(args)


def finetune(args: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune a classifier, and return what `all_results.json` holds."""
    launch.check_arguments(args, args.model_name_or_path)
    given = argparse.Namespace(**vars(args))
    check_output_dir(args.output_dir, args.resume_from_checkpoint, args.overwrite_output_dir, args.model_name_or_path)
    start = read_start(args)
    sigma = arguments.training_sigma(args, "uniform", start.config.finetuning_sigma if start is not None else None)
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
    noise = make_noise(args, attack, sigma)

    seed_step(args.seed, 0, 0)
    model = make_model(args, data.label_names, start, sigma)
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

    rows = header_rows(args, given, start, data.label_names, sigma)
    if attack is not None:
        rows["attack"] = str(attack)
    rows["layers"] = ", ".join(f"{group['name']} {group['lr']:.2g}" for group in groups if group["weight_decay"])
    job.announce("Fine-tuning", run, rows)

    def draw(model: NIMForRobustImageClassification, step: int, images: torch.Tensor) -> None:
        path = Path(args.output_dir) / "pictures" / "denoised.png"
        assert model.denoiser is not None
        plot_reconstructions(accelerator, model.denoiser, images, args.eval_sigmas, path, data.name)

    policy = None if args.auto_augment == "none" else args.auto_augment
    transform = finetuning_transform(config, args.crop_scale, args.horizontal_flip, policy, args.random_erasing)
    attacked = f", adversarially ({attack})" if attack is not None else ""
    summary = f"{SUMMARIES[args.train_on]}{attacked}."
    plot = draw if args.train_on == "denoised" else None
    with deferred_signals():
        job.fit(run, transform, noise, objective, make_evaluation(args, accelerator), plot)
        accelerator.print("\n".join(judge(run.metrics, args)))
        results = publish.save(run, args, job.plan, data, job.task, summary, repository, start)
    publish.push(run, args, job.task, repository)
    return results


if __name__ == "__main__":
    run_command(main)
