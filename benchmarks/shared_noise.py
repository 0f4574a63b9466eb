# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Compare attacks of adversarial training under the noise that is then trained on and under other noise.

    python benchmarks/shared_noise.py --model_name_or_path MODEL --dataset_name DATA

Attacks held-out training images as `finetune.py --adversarial_steps` does, each under a sigma and noise of its own,
and classifies them under the noise of the training pass. An attack that leaves more of them right is weaker.
"""

from collections.abc import Sequence

import numpy as np
import torch

from transformers_nim import NIMForRobustImageClassification, NIMImageProcessor
from transformers_nim.data.augmentation import LabelMixer
from transformers_nim.data.draws import NoiseDraw
from transformers_nim.data.images import evaluation_loader
from transformers_nim.data.loading import ImageSource
from transformers_nim.model.noise import UniformSigma
from transformers_nim.training.attack import TrainingAttack
from transformers_nim.training.objectives import ClassificationObjective
from transformers_nim.utils.cli import make_parser
from transformers_nim.utils.seeding import derive_seed_32
from transformers_nim.utils.statistics import mean_accuracy, paired_difference
from transformers_nim.utils.text_table import percent, render_table


NOISE = ("shared", "independent")


def measure(
    model: NIMForRobustImageClassification,
    source: ImageSource,
    num_steps: Sequence[int],
    sigma_high: float,
    eps: float,
) -> dict[tuple[int, str], np.ndarray]:
    """Return correctness per image, shape `(images, 1)`, by number of steps and kind of noise.

    Args:
        model: Classifier with the defense.
        source: Images, of which those to validate with are attacked.
        num_steps: Numbers of steps.
        sigma_high: Highest sigma, which is uniform from 0, in units of 0..255 pixels.
        eps: Radius of the Linf ball, in pixels of [0, 1]. Steps are as long as in training, 10/8 of it.
    """
    data = source.load(with_labels=True)
    draw = NoiseDraw(UniformSigma(0, sigma_high), attack_norm="Linf", for_attack=True)
    found: dict[tuple[int, str], list[torch.Tensor]] = {}
    for batch in evaluation_loader(data, model.config.num_channels, NIMImageProcessor.from_config(model.config), 64):
        pixel_values, labels = batch["pixel_values"], batch["labels"]
        seeds = [derive_seed_32("shared noise", int(row)) for row in batch["row"]]
        drawn = [draw(pixel_values.shape[1:], torch.Generator().manual_seed(seed)) for seed in seeds]
        batch |= {name: torch.stack([each[name] for each in drawn]) for name in drawn[0]} | {"step": 0}
        for steps in num_steps:
            for noise in NOISE:
                attack = TrainingAttack(eps, steps, 1.25 * eps, shared_noise=noise == "shared")
                objective = ClassificationObjective(model, model, "denoised", LabelMixer(2, 0, 0, 0), attack)
                attacked = objective.attacked(attack, batch, pixel_values, labels)
                with torch.no_grad():
                    logits = model(attacked, sigma=batch["sigma"], pixel_noise=batch["pixel_noise"]).logits
                found.setdefault((steps, noise), []).append((logits.argmax(dim=-1) == labels)[batch["is_valid"]])
    return {key: torch.cat(parts).numpy()[:, None] for key, parts in found.items()}


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = make_parser(__doc__)
    parser.add_argument("--model_name_or_path", required=True, help="classifier with the defense")
    parser.add_argument("--dataset_name", required=True, help="data set on the Hub or folder of parquet files")
    parser.add_argument("--num_images", type=int, default=256, help="number of held-out training images")
    parser.add_argument("--sigma_high", type=float, default=100.0, help="highest sigma, in units of 0..255 pixels")
    parser.add_argument("--eps", type=float, default=8.0, help="radius of the attack, in x/255")
    args = parser.parse_args(argv)
    model = NIMForRobustImageClassification.from_pretrained(args.model_name_or_path, dtype=torch.float32)
    source = ImageSource(dataset_name=args.dataset_name, train_val_split=0.04, max_eval_samples=args.num_images)
    found = measure(model, source, (1, 2), args.sigma_high, args.eps / 255)
    rows = []
    for steps in (1, 2):
        shared, independent = (found[steps, noise] for noise in NOISE)
        numbers = [mean_accuracy(shared), mean_accuracy(independent), paired_difference(independent, shared)]
        rows.append([str(steps), *(percent(n.mean, n.low, n.high) for n in numbers)])
    print(render_table(["steps", "shared", "independent", "difference"], rows))


if __name__ == "__main__":
    main()
