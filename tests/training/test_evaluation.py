# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Figures of a validation against the same figures computed image by image, by other means."""

import math

import accelerate
import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import random_picture, tiny_config, tiny_model
from PIL import Image

from transformers_nim import NIMForImageClassification, NIMForPreTraining, NIMImageProcessor
from transformers_nim.data.images import evaluation_loader
from transformers_nim.data.loading import ImageData
from transformers_nim.metrics import load_metric
from transformers_nim.training.evaluation import (
    evaluate_classifier,
    evaluate_denoiser,
    evaluate_masked,
    figure_name,
    judge_defense,
    judge_denoiser,
)
from transformers_nim.training.mae import MaskedAutoencoder
from transformers_nim.training.plots import plot_reconstructions
from transformers_nim.utils.seeding import derive_seed_32


SIGMAS = (0, 25, 75)
NUM_IMAGES, BROKEN = 7, (2, 6)


@pytest.fixture(autouse=True)
def _accelerate():
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture
def accelerator():
    return accelerate.Accelerator(cpu=True)


def image_data(pictures: list[Image.Image], broken=(), mode: str = "RGB") -> ImageData:
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=list("abcde"))}
    )
    rows = {"image": [picture.convert(mode) for picture in pictures], "label": [i % 5 for i in range(len(pictures))]}
    encoded = datasets.Dataset.from_dict(rows, features=features).to_list()
    for row in broken:
        encoded[row]["image"]["bytes"] = encoded[row]["image"]["bytes"][:50]
    images = datasets.Dataset.from_list(encoded, features=features)
    return ImageData("blocks", images, images, "image", "label", list("abcde"))


@pytest.fixture(scope="module")
def blocks() -> list[Image.Image]:
    return [random_picture(seed) for seed in range(NUM_IMAGES)]


def loader_of(accelerator, data, config, batch_size=3):
    processor = NIMImageProcessor.from_config(config)
    return accelerator.prepare_data_loader(evaluation_loader(data, config.num_channels, processor, batch_size))


def pixels_of(pictures, config) -> torch.Tensor:
    return NIMImageProcessor.from_config(config)(pictures, return_tensors="pt")["pixel_values"]


def generator_of(row: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed_32("evaluation", row))


def random_denoiser(**overrides) -> NIMForPreTraining:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NIMForPreTraining(tiny_config(**overrides))


def psnr(images: torch.Tensor, targets: torch.Tensor) -> float:
    """In dB, of pixels in 0..255."""
    return 10 * math.log10(255**2 / max((images - targets).double().square().mean().item(), 255**2 * 1e-10))


def to_255(pixel_values: torch.Tensor, config) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.image_mean, config.image_std))
    return (pixel_values * std + mean) * 255


@pytest.mark.parametrize("overrides", [{}, {"norm_pix_loss": True}, {"num_channels": 1, "image_size": [16, 32]}])
def test_denoiser_against_images_one_by_one(accelerator, blocks, overrides):
    model = random_denoiser(**overrides)
    config = model.config
    data = image_data(blocks, mode="L" if config.num_channels == 1 else "RGB")
    figures = evaluate_denoiser(accelerator, model, loader_of(accelerator, data, config), SIGMAS)

    pictures = [picture.convert("L") for picture in blocks] if config.num_channels == 1 else blocks
    pixel_values = pixels_of(pictures, config)
    expected: dict[str, list[float]] = {}
    model.eval()
    for row, image in enumerate(pixel_values.unsqueeze(1)):
        with torch.no_grad():
            expected.setdefault("loss", []).append(model(image, generator=[generator_of(row)]).loss.item())
        clean = to_255(image, config)
        for sigma in SIGMAS:
            noisy = (clean + sigma * torch.randn(image.shape, generator=generator_of(row))).clamp(0, 255)
            with torch.no_grad():
                denoised = to_255(model.denoise(image, sigma, generator=[generator_of(row)]), config)
            expected.setdefault(f"psnr_sigma_{sigma}", []).append(psnr(denoised, clean))
            expected.setdefault(f"psnr_noisy_sigma_{sigma}", []).append(psnr(noisy, clean))
    assert figures.pop("num_images") == len(pictures)
    assert figures == pytest.approx({name: np.mean(values) for name, values in expected.items()}, rel=1e-4)
    assert figures["psnr_noisy_sigma_0"] == pytest.approx(100, abs=1e-3)


def test_noise_of_a_known_strength(accelerator):
    """On grey pictures, far from both ends of the pixels, PSNR is the ratio of 255 to sigma; near them it is more."""
    config = tiny_config()
    figures = {}
    for value in (128, 255):
        data = image_data([Image.new("RGB", (32, 32), (value,) * 3)] * 4)
        figures[value] = evaluate_denoiser(accelerator, random_denoiser(), loader_of(accelerator, data, config), [20])
    assert figures[128]["psnr_noisy_sigma_20"] == pytest.approx(20 * math.log10(255 / 20), abs=0.1)
    # White can become darker only: half of the squares are left.
    assert figures[255]["psnr_noisy_sigma_20"] == pytest.approx(20 * math.log10(255 / 20) + 3.01, abs=0.15)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 50])
def test_figures_do_not_depend_on_the_batch_size(accelerator, blocks, batch_size):
    data = image_data(blocks, BROKEN)
    denoiser, classifier = random_denoiser(), tiny_model()
    masked = MaskedAutoencoder(denoiser)

    def figures(batch_size):
        loader = loader_of(accelerator, data, denoiser.config, batch_size)
        yield evaluate_denoiser(accelerator, denoiser, loader, [50])
        yield evaluate_masked(accelerator, masked, loader)
        yield evaluate_classifier(accelerator, classifier, loader, [None, 50])

    for actual, expected in zip(figures(batch_size), figures(3)):
        assert actual == pytest.approx(expected, rel=1e-5)


def test_masked_autoencoder_against_images_one_by_one(accelerator, blocks):
    model = MaskedAutoencoder(random_denoiser(norm_pix_loss=True))
    loader = loader_of(accelerator, image_data(blocks, BROKEN), model.config)
    figures = evaluate_masked(accelerator, model, loader)
    losses = []
    for row, image in enumerate(pixels_of(blocks, model.config).unsqueeze(1)):
        if row not in BROKEN:
            losses.append(model(image, torch.rand(16, generator=generator_of(row))[None]).loss.item())
    assert figures == pytest.approx({"loss": np.mean(losses), "num_images": len(losses)}, rel=1e-5)


@pytest.mark.parametrize("is_robust", [True, False])
def test_classifier_against_images_one_by_one(accelerator, blocks, is_robust):
    robust = tiny_model()
    model = robust
    if not is_robust:
        model = NIMForImageClassification(robust.config).eval()
        model.load_state_dict({k: v for k, v in robust.state_dict().items() if not k.startswith("denoiser.")})
    sigmas = (None, *SIGMAS)
    loader = loader_of(accelerator, image_data(blocks, BROKEN), model.config)
    figures = evaluate_classifier(accelerator, model, loader, sigmas)

    std = torch.tensor(model.config.image_std)[:, None, None]
    expected, chosen = {}, {}
    for sigma, name in zip(sigmas, ("off", "sigma_0", "sigma_25", "sigma_75")):
        losses, correct = [], []
        for row, image in enumerate(pixels_of(blocks, model.config).unsqueeze(1)):
            if row in BROKEN:
                continue
            if sigma is not None:
                image = image + torch.randn(image.shape, generator=generator_of(row)) * (sigma / 255 / std)
                if is_robust:
                    image = robust.denoiser.denoise(image, sigma=0)
            with torch.no_grad():
                outputs = model(image, labels=torch.tensor([row % 5]), **({"sigma": None} if is_robust else {}))
            losses.append(outputs.loss.item())
            correct.append(outputs.logits.argmax().item() == row % 5)
            chosen.setdefault(name, []).append(outputs.logits.argmax().item())
        metric = load_metric("robust_accuracy", keep_in_memory=True)
        interval = metric.compute(predictions=[int(hit) for hit in correct], references=[1] * len(correct))
        expected |= {f"loss_{name}": np.mean(losses), f"accuracy_{name}": np.mean(correct)}
        expected |= {f"accuracy_{name}_{end}": interval[f"accuracy_{end}"] for end in ("low", "high")}
    assert figures.pop("num_images") == len(correct)
    assert figures == pytest.approx(expected, rel=1e-4)
    # The settings differ, or one could be measured in place of another.
    assert len({tuple(classes) for classes in chosen.values()}) >= 2
    assert len({round(figures[f"loss_{name}"], 4) for name in chosen}) == (4 if is_robust else 3)


def test_accuracy_of_a_classifier_that_is_right(accelerator, blocks):
    """Labels that it predicts itself, and labels that it does not."""
    model = tiny_model()
    with torch.no_grad():
        predicted = model(pixels_of(blocks, model.config), sigma=None).logits.argmax(-1).tolist()
    data = image_data(blocks)
    for shift, accuracy in ((0, 1.0), (1, 0.0)):
        labels = [(label + shift) % 5 for label in predicted]
        labels = datasets.Dataset.from_list(
            [{**row, "label": label} for row, label in zip(data.train.to_list(), labels)], features=data.train.features
        )
        changed = ImageData("blocks", labels, labels, "image", "label", list("abcde"))
        figures = evaluate_classifier(accelerator, model, loader_of(accelerator, changed, model.config), [None])
        assert figures["accuracy_off"] == accuracy
        assert figures["accuracy_off_low"] <= accuracy + 1e-9
        assert figures["accuracy_off_high"] >= accuracy - 1e-9


def test_nothing_can_be_decoded(accelerator, blocks):
    data = image_data(blocks[:3], broken=(0, 1, 2))
    model = tiny_model()
    for evaluate, of, *sigmas in (
        (evaluate_denoiser, model.denoiser, [25]),
        (evaluate_masked, MaskedAutoencoder(random_denoiser())),
        (evaluate_classifier, model, [None, 25]),
    ):
        with pytest.raises(ValueError, match="none of the validation images can be decoded"):
            evaluate(accelerator, of, loader_of(accelerator, data, model.config), *sigmas)


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_restored(accelerator, blocks, training, tmp_path):
    """Also when something goes wrong; and dropout is off in between."""
    model = tiny_model(hidden_dropout_prob=0.5, drop_path_rate=0.5).train(training)
    masked = MaskedAutoencoder(random_denoiser(hidden_dropout_prob=0.5)).train(training)
    loader = loader_of(accelerator, image_data(blocks[:2]), model.config)
    modes = [module.training for module in (*model.modules(), *masked.modules())]
    pixel_values = pixels_of(blocks[:2], model.config)
    calls = (
        lambda: evaluate_classifier(accelerator, model, loader, [None]),
        lambda: evaluate_masked(accelerator, masked, loader),
        lambda: evaluate_denoiser(accelerator, masked.model, loader, [25]),
        lambda: plot_reconstructions(accelerator, masked, pixel_values, [], tmp_path / "a.png"),
        lambda: plot_reconstructions(accelerator, masked.model, pixel_values, [25], tmp_path / "b.png"),
    )
    for call in calls:
        assert call() == call()
        assert [module.training for module in (*model.modules(), *masked.modules())] == modes
    with pytest.raises(ValueError, match="got -1"):
        evaluate_classifier(accelerator, model, loader, [-1])
    assert [module.training for module in (*model.modules(), *masked.modules())] == modes


def test_prepared_in_half_precision(blocks):
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    classifier, denoiser = tiny_model(), random_denoiser(norm_pix_loss=True)
    loader = loader_of(accelerator, image_data(blocks), denoiser.config)

    def figures():
        return evaluate_denoiser(accelerator, denoiser, loader, [25]) | {
            name: value
            for name, value in evaluate_classifier(accelerator, classifier, loader, [None, 25]).items()
            if "loss" in name
        }

    exact = figures()
    classifier, denoiser = accelerator.prepare(classifier, denoiser)
    rounded = figures()
    assert rounded == pytest.approx(exact, rel=0.05)
    assert rounded != exact


def test_names_of_figures():
    """As results beside checkpoints have them."""
    names = [figure_name("loss", sigma) for sigma in (None, 0, 25.0, 2.5, 100)]
    assert names == ["loss_off", "loss_sigma_0", "loss_sigma_25", "loss_sigma_2.5", "loss_sigma_100"]


def cells_of(path, rows: int, columns: int) -> np.ndarray:
    """The 32x32 images that a picture shows, found by the frames that matplotlib draws around them."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(float)
    frames = [np.flatnonzero((pixels.sum(axis=2) < 60).mean(axis=axis) > 0.7) for axis in (1, 0)]
    frames = [[part[0] for part in np.split(line, np.flatnonzero(np.diff(line) > 1) + 1)] for line in frames]
    assert [len(line) for line in frames] == [2 * rows, 2 * columns], frames
    # In the middle of each of 32 pixels.
    places = [
        np.concatenate([a + (np.arange(32) + 0.5) * (b - a) / 32 for a, b in zip(line[::2], line[1::2])]).round()
        for line in frames
    ]
    shown = pixels[np.ix_(*(place.astype(int) for place in places))]
    return shown.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 1, 3, 4)


def test_picture_of_a_denoiser(accelerator, blocks, tmp_path):
    model = random_denoiser()
    # The identity, where no noise is: a denoiser whose pictures are known.
    model.restore = lambda noisy, sigma, *args, **kwargs: (_States(), noisy[:, :1], noisy)
    pixel_values = pixels_of(blocks, model.config)
    path = tmp_path / "new" / "folder" / "picture.png"
    plot_reconstructions(accelerator, model, pixel_values, [0, 100], path, "blocks, step 10")
    cells = cells_of(path, rows=5, columns=NUM_IMAGES)
    clean = to_255(pixel_values, model.config)
    noise = [torch.randn((3, 32, 32), generator=torch.Generator().manual_seed(seed)) for seed in range(NUM_IMAGES)]
    noisy = (clean + 100 * torch.stack(noise)).clamp(0, 255)
    for line, expected in zip(cells, (clean, clean, clean, noisy, noisy)):
        # But for rounding, and an edge that a frame hides.
        assert np.median(np.abs(line - expected.permute(0, 2, 3, 1).numpy())) < 1
    # Nothing is left to chance.
    plot_reconstructions(accelerator, model, pixel_values, [0, 100], tmp_path / "again.png", "blocks, step 10")
    assert (tmp_path / "again.png").read_bytes() == path.read_bytes()


class _States:
    hidden_states = attentions = None


def test_picture_of_a_masked_autoencoder(accelerator, blocks, tmp_path):
    model = MaskedAutoencoder(random_denoiser(num_channels=1))
    pixel_values = pixels_of([picture.convert("L") for picture in blocks[:3]], model.config)
    plot_reconstructions(accelerator, model, pixel_values, [25], tmp_path / "picture.png")
    cells = cells_of(tmp_path / "picture.png", rows=3, columns=3)
    # Grey is drawn in grey, and 12 of 16 patches are hidden behind the mean color.
    assert np.ptp(cells, axis=-1).max() == 0
    patches = cells[..., 0].reshape(3, 3, 4, 8, 4, 8)
    hidden = np.median(np.abs(patches[1] - 127.5), axis=(2, 4)) < 1
    assert hidden.sum(axis=(1, 2)).tolist() == [12, 12, 12]
    assert np.median(np.abs(patches[1] - patches[0]), axis=(2, 4))[~hidden].max() < 1
    assert np.median(np.abs(patches[2] - patches[0])) > 10


def test_only_the_main_process_draws(accelerator, blocks, tmp_path, monkeypatch):
    model = random_denoiser()
    monkeypatch.setattr(type(accelerator), "is_main_process", False)
    plot_reconstructions(accelerator, model, pixels_of(blocks[:1], model.config), [25], tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


def test_sentences_on_a_denoiser():
    figures = {"psnr_sigma_25": 26.0, "psnr_noisy_sigma_25": 20.5, "psnr_sigma_50": 14.0, "psnr_noisy_sigma_50": 15.0}
    assert judge_denoiser(figures, [25.0]) == (
        "On these pictures the denoiser is better than none: 26.0 instead of 20.5 dB at sigma 25."
    )
    assert "is no better than none at sigma 50: 26.0 instead" in judge_denoiser(figures, [25.0, 50.0])
    assert "is no better than none: 14.0 instead of 15.0 dB" in judge_denoiser(figures, [50.0])
    assert judge_denoiser(figures, [0.0]) is None


@pytest.mark.parametrize(
    ("off", "on", "half", "expected"),
    [
        (0.8, 0.6, 0.05, "Without an attack the defense costs 20 points: 80.0 [75.0, 85.0] % with the defense off,"),
        (0.6, 0.8, 0.05, "the defense gains 20 points"),
        (0.8, 0.7, 0.2, "30 images cannot tell that the defense costs or gains accuracy"),
    ],
)
def test_sentences_on_a_defense(off, on, half, expected):
    figures = {"num_images": 30.0}
    for name, value in (("accuracy_off", off), ("accuracy_sigma_50", on)):
        figures |= {name: value, f"{name}_low": value - half, f"{name}_high": value + half}
    assert expected in judge_defense(figures, 50.0)
