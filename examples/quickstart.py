# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Pretrains, fine-tunes, attacks and defends a small NIM model on scikit-learn's handwritten digits.

    python examples/quickstart.py                 # a few minutes on two CPU cores
    python examples/quickstart.py --fast          # seconds: shows that everything runs, not what it can do

It writes to `--output_dir`: a checkpoint for `from_pretrained` with image processor and model card, `results.json`,
`tradeoff.png` and `reconstructions.png`. The same flow runs on any images through `run()`.
"""

import argparse
import json
import platform
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import transformers_nim
from transformers_nim import (
    NIMConfig,
    NIMForImageClassification,
    NIMForPreTraining,
    NIMForRobustImageClassification,
    NIMImageProcessor,
)
from transformers_nim.attacks import EOTPGD, PixelClassifier
from transformers_nim.hub import attack_table, write_card
from transformers_nim.model.noise import add_noise, draw_noise, parse_sigma
from transformers_nim.robustness import correct_draws, mean_accuracy
from transformers_nim.utils.extras import require


ATTACKS = ("no attack", "PGD", "EOT-PGD")


def load_digits() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """1 797 grey pictures of 8x8 pixels as uint8 tensors, split into those to train on and those held out."""
    digits = require("sklearn.datasets").load_digits()
    pixels = torch.from_numpy(np.round(digits.images * 255 / 16).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    return {"train": (pixels[train], labels[train]), "test": (pixels[test], labels[test])}


def digits_config() -> NIMConfig:
    """A model for 8x8 pictures. Pretraining noise is the paper's; fine-tuning covers the sigmas that are evaluated."""
    return NIMConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=128,
        id2label={digit: str(digit) for digit in range(10)},
        label2id={str(digit): digit for digit in range(10)},
        finetuning_sigma={"type": "uniform", "low": 0, "high": 100},
        defense_sigma=50,
    )


def train(
    model: torch.nn.Module,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    num_images: int,
    steps: int,
    learning_rate: float,
    name: str,
    batch_size: int = 128,
) -> None:
    """AdamW with warm-up and cosine decay on random batches; `loss_of` gets the indices of a batch."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, max(1, steps // 20), steps)
    model.train()
    with require("tqdm").tqdm(total=steps, desc=name, unit="step") as bar:
        for _ in range(steps):
            loss = loss_of(torch.randint(num_images, (batch_size,)))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")
            bar.update()
    model.eval()


def run(
    data: dict[str, tuple[torch.Tensor, torch.Tensor]],
    config: NIMConfig,
    output_dir: str | Path,
    dataset_name: str,
    eps: float,
    sigmas: tuple[float, ...] = (0, 25, 50, 75, 100),
    pretraining_steps: int = 1000,
    finetuning_steps: int = 400,
    attack_steps: int = 40,
    eot_draws: int = 10,
    num_test_images: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """Pretrains, fine-tunes, evaluates and saves; returns what `results.json` holds.

    Args:
        data: `"train"` and `"test"`, each uint8 images of shape `(images, channels, height, width)` and labels.
        config: The model to make.
        output_dir: Where results go.
        dataset_name: Name of the data for the model card.
        eps: Radius of the attacks (Linf) in x/255.
        sigmas: Noise scales of the defense to evaluate, in units of 0..255 pixels.
        pretraining_steps: Steps of noisy image modeling.
        finetuning_steps: Steps of fine-tuning, for each of the three classifiers.
        attack_steps: Steps of EOT-PGD.
        eot_draws: Noise draws over which EOT-PGD averages each gradient.
        num_test_images: How many held-out images are attacked.
        seed: Seed of everything.
    """
    started = time.time()
    torch.manual_seed(seed)
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    processor = NIMImageProcessor.from_config(config)
    (train_images, train_labels), (test_images, test_labels) = data["train"], data["test"]
    inputs = processor(list(train_images), return_tensors="pt")["pixel_values"]

    denoiser = NIMForPreTraining(config)
    train(
        denoiser,
        lambda batch: denoiser(inputs[batch]).loss,
        len(inputs),
        pretraining_steps,
        4e-3,
        "1/4 pretraining: learning to denoise",
    )
    for part in (denoiser, processor):
        part.save_pretrained(output_dir / "pretraining")

    # All start from the pretrained encoder. The second is a control: it learns from noise, but has no denoiser.
    undefended = NIMForImageClassification.from_pretrained(output_dir / "pretraining")
    augmented = NIMForImageClassification.from_pretrained(output_dir / "pretraining")
    robust = NIMForRobustImageClassification.from_pretrained(output_dir / "pretraining")

    def add_training_noise(batch: torch.Tensor) -> torch.Tensor:
        sigma, noise = draw_noise(batch, parse_sigma(config.finetuning_sigma))
        return add_noise(batch, sigma[:, 0], noise[:, 0], config.image_std)

    for model, augment, name in (
        (undefended, torch.nn.Identity(), "2/4 fine-tuning on clean images"),
        (augmented, add_training_noise, "2/4 fine-tuning on noisy images"),
        (robust, torch.nn.Identity(), "3/4 fine-tuning on denoised images"),
    ):
        train(
            model,
            lambda batch, model=model, augment=augment: model(augment(inputs[batch]), labels=train_labels[batch]).loss,
            len(inputs),
            finetuning_steps,
            2e-3,
            name,
        )

    pixels, labels = test_images[:num_test_images] / 255, test_labels[:num_test_images]
    models = (undefended, augmented, robust)
    rows, adversarial = evaluate(models, pixels, labels, sigmas, eps, attack_steps, eot_draws, seed)
    results = {
        "dataset": dataset_name,
        "seed": seed,
        "num_images": len(pixels),
        "protocol": (
            f"Accuracy in percent on {len(pixels)} held-out images of {dataset_name}: mean over 8 noise draws that"
            " the attack never saw (1 without noise) and its 95 % interval (bootstrap over images and draws). Attacks:"
            f" Linf, eps {eps:g}/255, white-box, exact gradients through noise, denoiser and classifier, 1 random"
            f" start. PGD: 10 steps of eps/4, 1 draw per step. EOT-PGD: {attack_steps} steps of 2.5 eps /"
            f" {attack_steps}, gradients averaged over {eot_draws} draws (1 without noise), of all iterates the one"
            " with the highest mean loss."
        ),
        "rows": rows,
        "config": config.to_dict(),
        "pretraining_steps": pretraining_steps,
        "finetuning_steps": finetuning_steps,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "transformers_nim": transformers_nim.__version__,
        },
    }
    table = attack_table(rows)
    print(f"\n{textwrap.fill(results['protocol'], 100)}\n\n{table}\n")

    # The sigma to ship is a setting, not the winner of the table above, which was measured on the test images.
    robust.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    sigma = float(robust.config.defense_sigma["value"])
    plot_tradeoff(rows, output_dir / "tradeoff.png", f"{dataset_name}, Linf eps = {eps:g}/255")
    plot_reconstructions(robust, pixels, adversarial[sigma], labels, sigma, output_dir / "reconstructions.png", seed)
    results["seconds"] = round(time.time() - started, 1)
    (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    write_card(
        output_dir,
        name=output_dir.name,
        summary=(
            f"A small NIM model with the De^3 defense, pretrained for {pretraining_steps} steps and fine-tuned for"
            f" {finetuning_steps} on {dataset_name} by `examples/quickstart.py`, as a demonstration."
        ),
        training_data=f"{dataset_name}, {len(train_images):,} images.",
        results=["results.json"],
        limits=[
            "Only the attacks of the table were tried, with one start each and few images; stronger ones may succeed."
            " Nothing is claimed for other data, other norms or larger perturbations."
        ],
    )
    print(
        f"{results['seconds']:.0f} s; checkpoint, card, results.json, tradeoff.png, reconstructions.png: {output_dir}"
    )
    return results


def evaluate(models, pixels, labels, sigmas, eps, attack_steps, eot_draws, seed):
    """Attacks every setting of the defense, each with attacks of its own.

    Returns the rows of the results, and for every sigma the images that EOT-PGD made.
    """
    undefended, augmented, robust = models
    settings = [("undefended", undefended, {}), ("undefended, noise-augmented", augmented, {})]
    settings += [("De^3, off", robust, {"sigma": None})]
    settings += [(f"De^3, sigma {sigma:g}", robust, {"sigma": sigma}) for sigma in sigmas]
    rows, adversarial = [], {}
    with require("tqdm").tqdm(total=len(settings) * len(ATTACKS), desc="4/4 attacking", unit="attack") as bar:
        for name, model, kwargs in settings:
            sigma = kwargs.get("sigma")
            classifier = PixelClassifier(model, **kwargs)
            pgd = {"steps": 10, "step_size": eps / 255 / 4, "num_draws": 1, "keep_best": False}
            once = {"losses": ("ce",), "restarts": 1, "batch_size": len(pixels)}
            # Without noise all draws are the same.
            eot = {"steps": attack_steps, "num_draws": eot_draws if sigma else 1}
            for attack, options in zip(ATTACKS, ({}, pgd, eot)):
                attacked = pixels
                if options:
                    attacked = EOTPGD(**once, **options)(classifier, pixels, labels, eps=eps / 255, seed=seed)
                # Measured on noise that the attack has not seen.
                correct = correct_draws(classifier, attacked, labels, num_draws=8 if sigma else 1, seed=seed)
                accuracy = mean_accuracy(correct)
                row = {"model": name, "sigma": sigma, "attack": attack}
                row |= {key: round(100 * getattr(accuracy, key), 2) for key in ("mean", "low", "high")}
                rows.append(row | {"settings": {"norm": "Linf", "eps_255": eps, **options} if options else {}})
                bar.update()
            adversarial[sigma] = attacked
    return rows, adversarial


def plot_tradeoff(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Accuracy over sigma, one curve for each attack, beside the undefended model's level."""
    plt = require("matplotlib.pyplot")
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    # Shifted a little, so that bars do not hide each other.
    for attack, color, shift in zip(ATTACKS, ("tab:green", "tab:orange", "tab:red"), (0, -0.8, 0.8)):
        curve = [row for row in rows if row["attack"] == attack and row["sigma"] is not None]
        mean = np.array([row["mean"] for row in curve])
        errors = [mean - [row["low"] for row in curve], [row["high"] for row in curve] - mean]
        sigma = [row["sigma"] + shift for row in curve]
        axes.errorbar(sigma, mean, errors, color=color, marker="o", capsize=3, label=f"{attack}, De^3")
        level = next(row["mean"] for row in rows if row["attack"] == attack and row["model"] == "undefended")
        axes.axhline(level, color=color, linestyle=":", label=f"{attack}, undefended")
    axes.set(
        xlabel="sigma of the defense, in units of 0..255 pixels", ylabel="accuracy in %", ylim=(-2, 102), title=title
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_reconstructions(robust, pixels, adversarial, labels, sigma: float, path: Path, seed: int) -> None:
    """Clean, adversarial, noisy and denoised versions of a few images, with predictions."""
    plt = require("matplotlib.pyplot")
    shown = min(8, len(pixels))
    adversarial, names = adversarial[:shown], robust.config.id2label
    classifier = PixelClassifier(robust)
    to_pixels = torch.tensor(classifier.image_std)[:, None, None], torch.tensor(classifier.image_mean)[:, None, None]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        outputs = robust(classifier.normalize(adversarial), sigma=sigma, generator=generator, output_draws=True)
        off = [robust(classifier.normalize(x), sigma=None).logits.argmax(-1) for x in (pixels[:shown], adversarial)]
    noisy, denoised = (
        x[:, 0] * to_pixels[0] + to_pixels[1] for x in (outputs.noisy_pixel_values, outputs.denoised_pixel_values)
    )
    pictures = {
        "clean": (pixels, off[0]),
        f"adversarial\n(for sigma {sigma:g})": (adversarial, off[1]),
        f"noisy\n(sigma {sigma:g})": (noisy, None),
        "denoised": (denoised, outputs.logits.argmax(-1)),
    }
    figure, axes = plt.subplots(
        len(pictures), shown, figsize=(1.2 * shown + 1, 6.2), layout="constrained", squeeze=False
    )
    for line, (title, (images, predictions)) in zip(axes, pictures.items()):
        line[0].set_ylabel(title, fontsize="small")
        for column, axis in enumerate(line):
            axis.imshow(images[column].clamp(0, 1).permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            if predictions is not None:
                right = predictions[column] == labels[column]
                name = names[predictions[column].item()]
                axis.set_title(name, fontsize="small", color="tab:green" if right else "tab:red", pad=3)
    figure.suptitle(
        "Predictions (green: right), with the defense off for clean and adversarial, on for denoised",
        fontsize="small",
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """The command line; returns the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output_dir", default="outputs/quickstart", help="folder for checkpoint, results and plots")
    parser.add_argument("--eps", type=float, default=48, help="radius of the attacks (Linf) in x/255")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything")
    parser.add_argument("--max_eval_samples", type=int, default=100, help="held-out images to attack")
    parser.add_argument(
        "--max_train_steps", type=int, help="steps of pretraining and of fine-tuning; the attacks stay"
    )
    parser.add_argument("--fast", action="store_true", help="a few steps of everything, to see that it runs")
    args = parser.parse_args(argv)
    if args.eps <= 0 or args.max_eval_samples < 1 or (args.max_train_steps is not None and args.max_train_steps < 1):
        parser.error("--eps, --max_eval_samples and --max_train_steps must be greater than 0")
    options: dict[str, Any] = {"num_test_images": args.max_eval_samples}
    if args.fast:
        options |= {"pretraining_steps": 20, "finetuning_steps": 20, "attack_steps": 3, "eot_draws": 2}
        options |= {"num_test_images": min(20, args.max_eval_samples), "sigmas": (0, 50)}
    if args.max_train_steps is not None:
        options |= {"pretraining_steps": args.max_train_steps, "finetuning_steps": args.max_train_steps}
    # What these would say, this script says itself.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return run(
        load_digits(), digits_config(), args.output_dir, "scikit-learn digits", args.eps, seed=args.seed, **options
    )


if __name__ == "__main__":
    main()
