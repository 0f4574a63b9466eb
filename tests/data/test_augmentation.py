# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Augmentation, read off pictures that tell where they were cut out."""

import math
import pickle
import random

import numpy as np
import pytest
import torch
from conftest import random_picture, tiny_config
from PIL import Image
from scipy.stats import kstest
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from transformers_nim import NIMConfig, NIMImageProcessor
from transformers_nim.data.augmentation import LabelMixer, finetuning_transform, pretraining_transform


# Of normalized pixels, which are computed in another order here and there.
TOLERANCE = 1e-6
WIDTH, HEIGHT = 240, 160


def map_of_places() -> Image.Image:
    """A picture whose red is the column and whose green is the row of a pixel."""
    places = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    places[:, :, 0] = np.arange(WIDTH)
    places[:, :, 1] = np.arange(HEIGHT)[:, None]
    return Image.fromarray(places)


def raw_config(size: int | list[int] = 32, num_channels: int = 3) -> NIMConfig:
    """A model whose normalized pixels are those of the picture, divided by 255."""
    return tiny_config(
        image_size=size, num_channels=num_channels, image_mean=[0.0] * num_channels, image_std=[1.0] * num_channels
    )


def cut_out(pixels: torch.Tensor) -> tuple[float, float, float, float, bool]:
    """Left, top, width and height of a crop of the map, and whether it was flipped."""
    height, width = pixels.shape[1:]
    # The outer pixels are those of bicubic resampling at an edge.
    columns, rows = pixels[0].mean(dim=0).numpy() * 255, pixels[1].mean(dim=1).numpy() * 255
    inner_x, inner_y = np.arange(3, width - 3), np.arange(3, height - 3)
    slope_x, first_x = np.polyfit(inner_x + 0.5, columns[inner_x] + 0.5, 1)
    slope_y, first_y = np.polyfit(inner_y + 0.5, rows[inner_y] + 0.5, 1)
    left = first_x if slope_x > 0 else first_x + slope_x * width
    return left, first_y, abs(slope_x) * width, slope_y * height, bool(slope_x < 0)


def plain_finetuning(config: NIMConfig, crop_scale=(0.08, 1.0), horizontal_flip=0.5):
    return finetuning_transform(config, crop_scale, horizontal_flip, auto_augment=None, random_erasing=0)


TRANSFORMS = pytest.mark.parametrize(
    ("make", "low"), [(pretraining_transform, 0.2), (plain_finetuning, 0.08)], ids=["pretraining", "finetuning"]
)


@TRANSFORMS
def test_crops_cover_what_they_should(make, low):
    transform, picture = make(raw_config()), map_of_places()
    crops = np.array([cut_out(transform(picture, seed)) for seed in range(500)])
    left, top, width, height, flipped = crops.T
    error = 1.0  # pixels: crops begin and end at whole ones
    for begin, length, edge in ((left, width, WIDTH), (top, height, HEIGHT)):
        assert begin.min() > -error
        assert (begin + length).max() < edge + error
        # Uniform in what room there is.
        room = edge - length
        place = begin[room > 20] / room[room > 20]
        assert kstest(place, "uniform").pvalue > 1e-3
    area, shape = width * height / (WIDTH * HEIGHT), width / height
    assert low - 0.02 < area.min() < low + 0.03
    assert 0.85 < area.max() < 1.02
    assert 3 / 4 - 0.05 < shape.min() < 3 / 4 + 0.05
    assert 4 / 3 - 0.05 < shape.max() < 4 / 3 + 0.05
    # Small crops fit whatever their shape, so among them area and logarithm of the shape stay uniform.
    small = area < 0.5
    assert kstest((area[small] - low) / (0.5 - low), "uniform").pvalue > 1e-3
    logarithm = np.log(shape[small]) / math.log(4 / 3)
    assert kstest((logarithm + 1) / 2, "uniform").pvalue > 1e-3
    assert 0.4 < flipped.mean() < 0.6  # 4.5 standard deviations
    assert abs(np.corrcoef(flipped, left)[0, 1]) < 0.2


@pytest.mark.parametrize("size", [(100, 1), (1, 100), (300, 12), (1, 1), (12, 300)])
def test_elongated_pictures(size):
    for make in (pretraining_transform, finetuning_transform):
        pixels = make(tiny_config())(random_picture(0, size), 0)
        assert pixels.shape == (3, 32, 32)
        assert pixels.isfinite().all()


@TRANSFORMS
@pytest.mark.parametrize("num_channels", [3, 1])
def test_pixels_are_those_of_the_image_processor(make, low, num_channels):
    """So noise has the same size in training as later."""
    statistics = {"image_mean": [0.4, 0.5, 0.6][:num_channels], "image_std": [0.2, 0.25, 0.3][:num_channels]}
    config = tiny_config(num_channels=num_channels, **statistics)
    # All of a square picture is the only crop of it that covers all.
    transform = make(config, crop_scale=(1.0, 1.0), horizontal_flip=0)
    processor = NIMImageProcessor.from_config(config)
    picture = random_picture(3, (32, 32), "RGB" if num_channels == 3 else "L")
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    pixels = transform(picture, 5)
    assert pixels.shape == (num_channels, 32, 32)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, expected, rtol=0, atol=TOLERANCE)
    by_hand = (np.asarray(picture).reshape(32, 32, -1) / 255 - statistics["image_mean"]) / statistics["image_std"]
    torch.testing.assert_close(pixels.permute(1, 2, 0).double(), torch.from_numpy(by_hand), rtol=0, atol=TOLERANCE)


@TRANSFORMS
def test_pictures_are_resized_by_bicubic_resampling(make, low):
    for size in ((50, 50), (20, 20)):
        picture = random_picture(4, size)
        pixels = make(raw_config(), crop_scale=(1.0, 1.0), horizontal_flip=0)(picture, 0)
        resized = functional.resize(picture, [32, 32], InterpolationMode.BICUBIC, antialias=True)
        torch.testing.assert_close(pixels, functional.pil_to_tensor(resized) / 255, rtol=0, atol=TOLERANCE)


@TRANSFORMS
def test_flips(make, low):
    picture, config = random_picture(5, (32, 32)), raw_config()
    plain = make(config, crop_scale=(1.0, 1.0), horizontal_flip=0)(picture, 0)
    flips = make(config, crop_scale=(1.0, 1.0), horizontal_flip=1)
    assert all(torch.equal(flips(picture, seed), plain.flip(-1)) for seed in range(20))
    sometimes = make(config, crop_scale=(1.0, 1.0), horizontal_flip=0.2)
    flipped = sum(not torch.equal(sometimes(picture, seed), plain) for seed in range(500))
    assert 60 < flipped < 140  # 4.5 standard deviations around 100


@pytest.mark.parametrize("make", [pretraining_transform, finetuning_transform])
def test_images_of_other_shapes(make):
    pixels = make(raw_config([16, 40]))(map_of_places(), 0)
    assert pixels.shape == (3, 16, 40)
    if make is pretraining_transform:
        _, _, width, height, _ = cut_out(pixels)
        assert 3 / 4 - 0.1 < width / height < 4 / 3 + 0.1


@pytest.mark.parametrize("num_channels", [3, 1])
@pytest.mark.parametrize("make", [pretraining_transform, finetuning_transform])
def test_a_seed_decides_everything(make, num_channels):
    transform = make(tiny_config(num_channels=num_channels))
    # To worker processes, which need not be forks.
    travelled = pickle.loads(pickle.dumps(transform))
    picture = random_picture(6, (40, 30), "RGB" if num_channels == 3 else "L")
    before = picture.tobytes()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    first = [transform(picture, seed) for seed in range(12)]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    assert all(torch.equal(travelled(picture, seed), pixels) for seed, pixels in enumerate(first))
    assert random.getstate() == states[0]
    assert str(np.random.get_state()) == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert len({pixels.numpy().tobytes() for pixels in first}) == 12
    assert picture.tobytes() == before


def test_erasing_fills_rectangles_with_noise():
    config, picture = raw_config(), map_of_places()
    plain = plain_finetuning(config)
    erasing = finetuning_transform(config, auto_augment=None, random_erasing=0.25)
    areas, noise = [], []
    for seed in range(400):
        before, after = plain(picture, seed), erasing(picture, seed)
        erased = (before != after).all(dim=0)
        if not erased.any():
            assert torch.equal(before, after)
            continue
        rows, columns = erased.any(dim=1).nonzero().flatten(), erased.any(dim=0).nonzero().flatten()
        box = erased[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all()
        assert torch.equal(before[:, ~erased], after[:, ~erased])
        areas.append(box.numel() / erased.numel())
        noise.append(after[:, erased].flatten())
    assert 60 < len(areas) < 140  # 4.5 standard deviations around 100
    assert 0.015 < min(areas) < 0.05
    assert 0.25 < max(areas) < 0.35
    assert kstest(torch.cat(noise).numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("num_channels", [3, 1])
def test_policies_take_any_picture(num_channels):
    config = raw_config(16, num_channels)
    mode = "RGB" if num_channels == 3 else "L"
    pictures = [random_picture(seed, (20, 16), mode) for seed in range(10)]
    pictures += [Image.new(mode, (16, 16)), Image.new(mode, (16, 16), "white")]
    plain = plain_finetuning(config)
    for policy, num in (("rand-m9-mstd0.5-inc1", 300), ("rand-m10-n4", 60), ("original", 60), ("augmix-m5-w2", 20)):
        transform = finetuning_transform(config, auto_augment=policy, random_erasing=0)
        changed = 0
        for seed in range(num):
            picture = pictures[seed % len(pictures)]
            pixels = transform(picture, seed)
            assert pixels.shape == (num_channels, 16, 16)
            assert 0 <= pixels.min() <= pixels.max() <= 1
            changed += not torch.equal(pixels, plain(picture, seed))
        # Many operations do nothing to a black or white picture, and each is left out half of the time.
        assert changed > num / 3, policy


@pytest.mark.parametrize("num_channels", [3, 1])
def test_posterizing_to_zero_bits_is_black(num_channels):
    """The strongest posterization of the default policy, which Pillow 13 refuses."""
    config = raw_config(16, num_channels)
    picture = Image.new("RGB" if num_channels == 3 else "L", (16, 16), (200, 200, 200) if num_channels == 3 else 200)
    # One operation for each picture, and no other can turn all of this grey to black.
    transform = finetuning_transform(config, auto_augment="rand-m10-n1-p1-inc1", random_erasing=0)
    brightest = [transform(picture, seed).max().item() for seed in range(120)]
    assert 1 <= brightest.count(0) <= 20  # one of 15 operations: 8 are expected
    # At nine, one bit is left.
    transform = finetuning_transform(config, auto_augment="rand-m9-n1-p1-inc1", random_erasing=0)
    assert any(transform(picture, seed).max().item() == pytest.approx(128 / 255) for seed in range(120))


def test_default_policy_is_that_of_mae():
    transform = finetuning_transform(tiny_config())
    names = [type(part).__name__ for part in transform.keywords["transform"].transforms]
    assert names == [
        "RandomResizedCropAndInterpolation",
        "RandomHorizontalFlip",
        "RandAugment",
        "MaybeToTensor",
        "Normalize",
        "RandomErasing",
    ]
    policy = transform.keywords["transform"].transforms[2]
    assert policy.num_layers == 2
    assert len(policy.ops) == 15
    assert {(op.magnitude, op.magnitude_std, op.prob) for op in policy.ops} == {(9, 0.5, 0.5)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop_scale": (0.0, 1.0)}, r"0 < low <= high <= 1, got \(0.0, 1.0\)"),
        ({"crop_scale": (0.5, 0.2)}, r"got \(0.5, 0.2\)"),
        ({"crop_scale": (0.5, 1.5)}, r"got \(0.5, 1.5\)"),
        ({"crop_scale": [float("nan"), 1.0]}, "crop_scale"),
        ({"horizontal_flip": 1.1}, r"horizontal_flip must be a probability in \[0, 1\], got 1.1"),
        ({"horizontal_flip": -0.1}, "got -0.1"),
        ({"random_erasing": 2.0}, r"random_erasing must be a probability in \[0, 1\], got 2.0"),
        ({"auto_augment": "radn-m9"}, "auto_augment must be a policy of timm, got 'radn-m9'"),
        ({"auto_augment": "rand-q9"}, "must be a policy of timm, got 'rand-q9'"),
        ({"auto_augment": "rand-mx9"}, "must be a policy of timm"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        finetuning_transform(tiny_config(), **arguments)
    if not arguments.keys() & {"random_erasing", "auto_augment"}:
        with pytest.raises(ValueError, match=message):
            pretraining_transform(tiny_config(), **arguments)


# What LabelMixer does to images that are all of their number, so that a pixel tells which two it was mixed from.


def numbered_batch(num: int = 6, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.arange(num, dtype=torch.float32)[:, None, None, None].expand(num, 3, size, size).clone()
    return images, torch.arange(num) % 5


def test_mixup_mixes_labels_as_images():
    mixer, shares = LabelMixer(5, mixup=0.8, cutmix=0, label_smoothing=0.1), []
    np.random.seed(0)
    for _ in range(300):
        images, labels = numbered_batch()
        mixed, probabilities = mixer(images.clone(), labels)
        # Image 0 is 0 and its partner 5: what is mixed in.
        share = 1 - mixed[0, 0, 0, 0].item() / 5
        torch.testing.assert_close(mixed, images * share + images.flip(0) * (1 - share))
        one_hot = torch.nn.functional.one_hot(labels, 5) * 0.9 + 0.1 / 5
        torch.testing.assert_close(probabilities, one_hot * share + one_hot.flip(0) * (1 - share))
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(6))
        shares.append(share)
    assert kstest(shares, "beta", args=(0.8, 0.8)).pvalue > 1e-3


def test_cutmix_mixes_labels_as_areas():
    mixer, shares = LabelMixer(5, mixup=0, cutmix=1.0, label_smoothing=0), []
    np.random.seed(0)
    for _ in range(300):
        images, labels = numbered_batch()
        mixed, probabilities = mixer(images.clone(), labels)
        pasted = mixed[0, 0] == 5
        assert torch.equal(mixed, torch.where(pasted, images.flip(0), images))
        rows, columns = pasted.any(dim=1).nonzero().flatten(), pasted.any(dim=0).nonzero().flatten()
        assert pasted.sum() == len(rows) * len(columns)
        share = 1 - pasted.float().mean()
        one_hot = torch.nn.functional.one_hot(labels, 5)
        torch.testing.assert_close(probabilities, one_hot * share + one_hot.flip(0) * (1 - share))
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(6))
        shares.append(share.item())
    assert min(shares) < 0.3
    assert max(shares) > 0.95
    assert 0.5 < np.mean(shares) < 0.75  # boxes are cut off at the border


def test_both_kinds_of_mixing_take_turns():
    mixer = LabelMixer(5)
    states = random.getstate(), torch.get_rng_state()
    np.random.seed(0)
    # Pasted pixels are whole numbers.
    kinds = [bool((mixer(*numbered_batch())[0] % 1 == 0).all()) for _ in range(200)]
    assert 60 < sum(kinds) < 140
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_smoothing_alone():
    images, _ = numbered_batch(3)
    mixed, probabilities = LabelMixer(4, mixup=0, cutmix=0, label_smoothing=0.2)(images, torch.tensor([0, 3, 1]))
    assert mixed is images
    expected = torch.full((3, 4), 0.05)
    expected[range(3), [0, 3, 1]] = 0.85
    torch.testing.assert_close(probabilities, expected)


def test_nothing_to_mix():
    images, labels = numbered_batch(3)
    mixed, same = LabelMixer(5, mixup=0, cutmix=0, label_smoothing=0)(images, labels)
    assert mixed is images
    assert same is labels


@pytest.mark.parametrize("kinds", [{"mixup": 0.8, "cutmix": 0}, {"mixup": 0, "cutmix": 1.0}])
def test_odd_batches_have_no_pairs(kinds):
    with pytest.raises(ValueError, match="pair the images of a batch; 3 is odd"):
        LabelMixer(5, **kinds)(*numbered_batch(3))


@pytest.mark.parametrize(
    "arguments",
    [
        {"mixup": -0.1},
        {"cutmix": -1.0},
        {"label_smoothing": 1.0},
        {"label_smoothing": -0.1},
        {"mixup": float("nan")},
    ],
)
def test_mixing_out_of_range(arguments):
    with pytest.raises(ValueError, match="mixup and cutmix must be at least 0 and label_smoothing in"):
        LabelMixer(5, **arguments)
