# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What is measured: a classifier with one sigma or another, and images of a data set in a fixed order."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from ..attacks.adapter import PixelClassifier
from .images import EvaluationImages
from .loading import ImageData


@dataclass(frozen=True)
class ImageRecord:
    """One image of an evaluation.

    Attributes:
        row: Its row in the data set.
        image: A hash of its pixels as the model sees them.
        label: Its true class, by the model's numbers.
    """

    row: int
    image: str
    label: int


@dataclass(frozen=True)
class EvaluationSet:
    """The images of an evaluation, read when they are needed.

    Attributes:
        images: One record for each image, in the order in which they are taken.
        read: From a row to its pixels in [0, 1], shape `(channels, height, width)`.
        undecodable: Rows that would have come before the last image, but cannot be decoded.
    """

    images: list[ImageRecord]
    read: Callable[[int], torch.Tensor]
    undecodable: tuple[int, ...] = ()

    @classmethod
    def from_tensors(cls, pixels: torch.Tensor, labels: torch.Tensor) -> "EvaluationSet":
        """Images that are already in memory.

        Args:
            pixels: In [0, 1], shape `(images, channels, height, width)`.
            labels: True classes, shape `(images,)`.
        """
        images = [ImageRecord(row, _hash(image), int(label)) for row, (image, label) in enumerate(zip(pixels, labels))]
        return cls(images, pixels.__getitem__)

    @classmethod
    def from_data(
        cls,
        data: ImageData,
        model: PreTrainedModel,
        image_processor: Any,
        num_images: int,
        labels_by_index: bool = False,
    ) -> "EvaluationSet":
        """The first so many images in an order that is shuffled once and for all.

        Shuffled, because data sets are often sorted by class; in the same way for every model and seed, so that
        evaluations can be compared image by image.

        Args:
            data: Its training part is what is evaluated.
            model: The model, whose classes the labels are mapped to.
            image_processor: Its image processor.
            num_images: How many images; fewer if there are not as many.
            labels_by_index: See [`class_numbers`].

        Raises:
            ValueError: The classes do not fit the model, no image can be decoded, or its pixels leave [0, 1].
        """
        number_of = class_numbers(data, model.config, labels_by_index)
        adapter = PixelClassifier(model, image_processor=image_processor)
        channels = getattr(model.config, "num_channels", 3)
        samples = EvaluationImages(data.train, data.reader(data.train, channels), image_processor)
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()

        def pixels_of(pixel_values: torch.Tensor) -> torch.Tensor:
            pixels = adapter.to_pixels(pixel_values)
            if pixels.min() < -1e-3 or pixels.max() > 1 + 1e-3:
                raise ValueError(
                    f"{type(image_processor).__name__} makes pixels from {pixels.min():.3f} to {pixels.max():.3f}"
                    " where [0, 1] is expected; its normalization is not the one that it says"
                )
            # Rounding of the normalization and back; the adapter normalizes again.
            return pixels.clamp(0, 1)

        images: list[ImageRecord] = []
        undecodable: list[int] = []
        for row in order:
            if len(images) == num_images:
                break
            sample = samples[row]
            if sample["is_valid"]:
                pixels = pixels_of(sample["pixel_values"])
                images.append(ImageRecord(row, _hash(pixels), number_of[sample["labels"]]))
            else:
                undecodable.append(row)
        if not images:
            raise ValueError("none of the images can be decoded: is this the column of images?")
        return cls(images, lambda row: pixels_of(samples[row]["pixel_values"]), tuple(undecodable))


def _hash(pixels: torch.Tensor) -> str:
    # In 256 levels, so that pictures are recognized after another model's normalization, too.
    levels = (pixels.cpu() * 255).round().to(torch.uint8)
    return hashlib.sha256(f"{tuple(levels.shape)}".encode() + levels.numpy().tobytes()).hexdigest()[:16]


def class_numbers(data: ImageData, config: Any, by_index: bool = False) -> list[int]:
    """For each class of the data its number in the model.

    Args:
        data: A data set with named classes.
        config: The model's.
        by_index: Whether the data's classes have the model's numbers, whatever their names are.

    Raises:
        ValueError: The model does not know a class.
    """
    names = data.label_names
    known: Mapping[str, int] = {str(name): int(index) for name, index in config.label2id.items()}
    unknown = [name for name in names if name not in known]
    if not unknown and not by_index:
        return [known[name] for name in names]
    if by_index and names and all(name.isdigit() for name in names):
        # A column of numbers: its classes are not those that happen to be there, in their order.
        numbers = [int(name) for name in names]
        if max(numbers) >= config.num_labels:
            raise ValueError(f"the data has a class {max(numbers)}, the model {config.num_labels} classes from 0")
        return numbers
    if by_index and len(names) > config.num_labels:
        raise ValueError(f"the data has {len(names)} classes, the model {config.num_labels}")
    is_unnamed = all(name == f"LABEL_{index}" for name, index in known.items())
    if by_index or (is_unnamed and len(names) == config.num_labels):
        return list(range(len(names)))
    raise ValueError(
        f"the model does not know the classes {unknown[:5]} of the data; it has {list(known)[:5]} and so on. If their"
        " order is the same, pass --labels_by_index"
    )
