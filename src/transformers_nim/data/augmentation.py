# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Augment training images with timm."""

from collections.abc import Callable
from functools import partial

import torch
from PIL import Image, ImageOps
from torch.utils.data import get_worker_info

from ..model.configuration_nim import NIMConfig
from ..utils.extras import require
from ..utils.seeding import seeded


# From a picture of the model's number of channels and a seed to normalized pixels.
Transform = Callable[[Image.Image, int], torch.Tensor]


def pretraining_transform(
    config: NIMConfig, crop_scale: tuple[float, float] = (0.2, 1.0), horizontal_flip: float = 0.5
) -> Transform:
    """Return random resized crop (bicubic) and flip, the augmentation of MAE (arXiv 2111.06377) and of NIM.

    Args:
        config: Config of the model; gives size and normalization.
        crop_scale: Smallest and largest share of a picture's area that a crop covers, in (0, 1].
        horizontal_flip: Probability of a flip.

    Returns:
        A function from a PIL image of the model's number of channels and a seed to normalized pixels.

    Raises:
        ValueError: An argument is out of range.
    """
    return _timm_transform(config, crop_scale, horizontal_flip)


def finetuning_transform(
    config: NIMConfig,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    horizontal_flip: float = 0.5,
    auto_augment: str | None = "rand-m9-mstd0.5-inc1",
    random_erasing: float = 0.25,
) -> Transform:
    """Return timm's training augmentation; the defaults are those of MAE's fine-tuning (arXiv 2111.06377).

    Args:
        config: Config of the model; gives size and normalization.
        crop_scale: Smallest and largest share of a picture's area that a crop covers, in (0, 1].
        horizontal_flip: Probability of a flip.
        auto_augment: A policy in timm's notation, here RandAugment with magnitude 9; None for no policy.
        random_erasing: Probability that a rectangle is filled with noise.

    Returns:
        A function from a PIL image of the model's number of channels and a seed to normalized pixels.

    Raises:
        ValueError: An argument is out of range.
    """
    return _timm_transform(config, crop_scale, horizontal_flip, auto_augment, random_erasing)


def _timm_transform(
    config: NIMConfig,
    crop_scale: tuple[float, float],
    horizontal_flip: float,
    auto_augment: str | None = None,
    random_erasing: float = 0.0,
) -> Transform:
    _check_crop(crop_scale, horizontal_flip)
    if not 0 <= random_erasing <= 1:
        raise ValueError(f"random_erasing must be a probability in [0, 1], got {random_erasing}")
    try:
        transform = require("timm.data").create_transform(
            input_size=(config.num_channels, *config.image_shape),
            is_training=True,
            scale=tuple(crop_scale),
            hflip=horizontal_flip,
            color_jitter=None,
            auto_augment=auto_augment,
            interpolation="bicubic",
            mean=tuple(config.image_mean),
            std=tuple(config.image_std),
            re_prob=random_erasing,
            re_mode="pixel",
        )
    except (AssertionError, ValueError, LookupError) as error:
        raise ValueError(f"auto_augment must be a policy of timm, got {auto_augment!r}: {error}") from error
    for part in transform.transforms:
        _allow_zero_bits(part)
    return partial(_apply_seeded, transform=transform)


def _apply_seeded(picture: Image.Image, seed: int, transform: Callable[[Image.Image], torch.Tensor]) -> torch.Tensor:
    # timm draws from the global generators of Python, NumPy and torch.
    with seeded(seed, restore=get_worker_info() is None):
        return transform(picture)


def _allow_zero_bits(policy) -> None:
    """Let a policy of timm posterize to zero bits, a black picture, which Pillow 13 refuses to do."""
    timm_posterize = require("timm.data.auto_augment").posterize
    operations = [*getattr(policy, "ops", []), *(op for ops in getattr(policy, "policy", []) for op in ops)]
    for operation in operations:
        if getattr(operation, "aug_fn", None) is timm_posterize:
            operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits_to_keep: int, **_) -> Image.Image:
    if bits_to_keep >= 8:
        return image
    return ImageOps.posterize(image, bits_to_keep) if bits_to_keep > 0 else Image.new(image.mode, image.size)


def _check_crop(crop_scale: tuple[float, float], horizontal_flip: float) -> None:
    if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise ValueError(f"crop_scale must be two numbers with 0 < low <= high <= 1, got {tuple(crop_scale)}")
    if not 0 <= horizontal_flip <= 1:
        raise ValueError(f"horizontal_flip must be a probability in [0, 1], got {horizontal_flip}")


class LabelMixer:
    """Apply mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899) and label smoothing to a batch, with timm.

    Args:
        num_labels: Number of classes.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of CutMix; 0 for none.
        label_smoothing: Probability mass spread over all classes, in [0, 1).

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, num_labels: int, mixup: float = 0.8, cutmix: float = 1.0, label_smoothing: float = 0.1):
        if not (mixup >= 0 and cutmix >= 0 and 0 <= label_smoothing < 1):
            raise ValueError(
                "mixup and cutmix must be at least 0 and label_smoothing in [0, 1), got"
                f" {mixup}, {cutmix} and {label_smoothing}"
            )
        self.num_labels, self.label_smoothing = num_labels, label_smoothing
        self.mix = None
        if mixup > 0 or cutmix > 0:
            self.mix = require("timm.data").Mixup(
                mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=label_smoothing, num_classes=num_labels
            )

    def __call__(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch. Draws from NumPy's global generator.

        Args:
            pixel_values: Images of shape `(batch, channels, height, width)`.
            labels: Classes of shape `(batch,)`.

        Returns:
            The images, and the labels: unchanged, or probabilities of shape `(batch, num_labels)` where anything is
            mixed or smoothed.

        Raises:
            ValueError: The batch size is odd; timm mixes pairs of images.
        """
        if self.mix is not None:
            if len(pixel_values) % 2:
                raise ValueError(
                    f"mixup and CutMix pair the images of a batch; {len(pixel_values)} is odd. Change the batch size,"
                    " or switch both off with 0"
                )
            return self.mix(pixel_values, labels)
        if self.label_smoothing > 0:
            mixup_target = require("timm.data.mixup").mixup_target
            return pixel_values, mixup_target(labels, self.num_labels, 1.0, self.label_smoothing)
        return pixel_values, labels
