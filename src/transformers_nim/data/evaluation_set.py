# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The images of an evaluation: a split of a data set in a fixed order, with the model's class numbers."""

import argparse
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from ..model.pixel_classifier_nim import PixelClassifier
from .images import EvaluationImages
from .loading import ImageData, ImageSource


@dataclass(frozen=True)
class ImageRecord:
    """One image of an evaluation.

    Attributes:
        row: Its row in the data set.
        image: A hash of the pixels that the model sees.
        label: Its true class, as the model numbers it.
    """

    row: int
    image: str
    label: int


@dataclass(frozen=True)
class EvaluationSet:
    """The images of an evaluation, read when they are needed.

    Attributes:
        images: One record per image, in the order of the evaluation.
        read: Returns the pixels of a row in [0, 1], shape `(channels, height, width)`.
        undecodable: Rows before the last image that cannot be decoded.
    """

    images: list[ImageRecord]
    read: Callable[[int], torch.Tensor]
    undecodable: tuple[int, ...] = ()

    @classmethod
    def from_tensors(cls, pixels: torch.Tensor, labels: torch.Tensor) -> "EvaluationSet":
        """Take images that are already in memory.

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
        """Take the first images of a shuffled data set.

        Data sets are often sorted by class, hence the shuffling. The order is the same for every model and seed, so
        that evaluations can be compared image by image.

        Args:
            data: The data set; its training part is evaluated.
            model: The model, whose class numbers the labels become.
            image_processor: Its image processor.
            num_images: Number of images; all if there are fewer.
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
            # Normalizing and undoing it rounds; the adapter normalizes again.
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
    # In 256 levels, so that a picture has the same hash after another model's normalization.
    levels = (pixels.cpu() * 255).round().to(torch.uint8)
    return hashlib.sha256(f"{tuple(levels.shape)}".encode() + levels.numpy().tobytes()).hexdigest()[:16]


def class_numbers(data: ImageData, config: Any, by_index: bool = False) -> list[int]:
    """Return the model's number of each class of the data.

    Args:
        data: A data set with named classes.
        config: The model's config.
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
        # A column of numbers names the classes itself: those that occur may leave gaps.
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


def add_split_arguments(group: Any) -> None:
    """Add the arguments that [`load_split`] reads, and `--labels_by_index`, to a parser or a group of one."""
    group.add_argument(
        "--dataset_name",
        help="a data set on the Hub, a folder (of parquet files, of images in one folder per class, or written by"
        " save_to_disk) or a .parquet file",
    )
    group.add_argument("--dataset_config_name", help="configuration of a data set that has several")
    group.add_argument("--split", default="test", help="split of the images")
    group.add_argument("--image_column_name", help="column of images; if left out, found by its type or name")
    group.add_argument("--label_column_name", help="column of labels; if left out, found by its type or name")
    group.add_argument(
        "--labels_by_index",
        action="store_true",
        help="the data set's classes have the model's numbers, whatever their names are",
    )
    group.add_argument("--cache_dir", help="folder for downloads")
    group.add_argument("--token", help="token for private data sets and models")


def load_split(args: argparse.Namespace) -> ImageData:
    """Find the images of one split, as the training part of the data.

    Args:
        args: Parsed arguments of [`add_split_arguments`].

    Raises:
        ValueError: See [`ImageSource`] and its `load`.
    """
    return ImageSource(
        args.dataset_name,
        args.dataset_config_name,
        train_split_name=args.split,
        train_val_split=0,
        image_column_name=args.image_column_name,
        label_column_name=args.label_column_name,
        cache_dir=args.cache_dir,
        token=args.token,
    ).load(with_labels=True)
