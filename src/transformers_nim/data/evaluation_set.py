# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The images of an evaluation: a split of a data set in a fixed order, with the model's class numbers."""

import argparse
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..model.pixel_classifier_nim import PixelClassifier, unwrap
from ..utils.seeding import forked_rng
from .images import EvaluationImages
from .loading import ImageData, ImageSource, describe_data


# What a data set's split of images to evaluate on is usually called.
_SPLITS = ("test", "validation", "valid", "val")


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
        source: Where they come from, as the settings of a report name it: `dataset`, `dataset_images`, `split`,
            `dataset_config_name` and `labels_by_index`.
        label_names: Names of the data's classes, if it has any.
    """

    images: list[ImageRecord]
    read: Callable[[int], torch.Tensor]
    undecodable: tuple[int, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
    label_names: Sequence[str] = ()

    def of_split(self, split: str, dataset_config_name: str | None = None) -> "EvaluationSet":
        """Return the images with the names of the split and of the configuration that they come from."""
        return replace(self, source={**self.source, "split": split, "dataset_config_name": dataset_config_name})

    @classmethod
    def from_tensors(
        cls, pixels: torch.Tensor, labels: torch.Tensor | Sequence[int], num_images: int | None = None
    ) -> "EvaluationSet":
        """Take images that are already in memory, in their order.

        Args:
            pixels: In [0, 1], shape `(images, channels, height, width)`.
            labels: True classes as the model numbers them, shape `(images,)`.
            num_images: Take the first so many; all if left out or if there are fewer.

        Raises:
            ValueError: Pixels or labels have the wrong type, shape or range.
        """
        pixels, labels = torch.as_tensor(pixels), torch.as_tensor(labels)
        if pixels.ndim != 4 or len(pixels) == 0:
            raise ValueError(
                f"images must have the shape (images, channels, height, width), got {tuple(pixels.shape)}"
            )
        if labels.shape != (len(pixels),) or labels.is_floating_point() or labels.is_complex():
            raise ValueError(
                f"labels must be {len(pixels)} class numbers, one per image, got {labels.dtype} of shape"
                f" {tuple(labels.shape)}"
            )
        number = len(pixels) if num_images is None else num_images
        pixels, labels = check_pixels(pixels[:number]), labels[:number]
        records = [
            ImageRecord(row, _hash(image), int(label)) for row, (image, label) in enumerate(zip(pixels, labels))
        ]
        return cls(records, pixels.__getitem__, source=_as_given("tensors", number))

    @classmethod
    def from_pairs(
        cls, pairs: Dataset | DataLoader, num_images: int, to_pixels: Callable[[Image.Image], torch.Tensor]
    ) -> "EvaluationSet":
        """Take images of a torch data set, shuffled as those of [`EvaluationSet.from_data`], or of a loader, in order.

        Args:
            pairs: Pairs of a picture (PIL) or pixels in [0, 1] and a class number; of a loader, batches of the latter.
            num_images: Number of images; all if there are fewer.
            to_pixels: Returns the pixels of a picture.

        Raises:
            ValueError: There are no pairs, pixels leave [0, 1], or a row gives other pixels when it is read again.
        """
        if isinstance(pairs, DataLoader):
            batches = list(islice(pairs, -(-num_images // (pairs.batch_size or 1))))
            if not batches or len(batches[0]) != 2:
                raise ValueError("a DataLoader must give batches of pixels and labels, got none")
            pixels, labels = (torch.cat([batch[index] for batch in batches]) for index in (0, 1))
            return cls.from_tensors(pixels, labels, num_images)
        if not hasattr(pairs, "__len__"):
            raise ValueError(f"{type(pairs).__name__} has no length; pass tensors, or a data set with rows by number")

        def read(row: int) -> torch.Tensor:
            image = pairs[row][0]
            return to_pixels(image) if isinstance(image, Image.Image) else check_pixels(image)

        def record(row: int) -> ImageRecord:
            found = _hash(read(row))
            if _hash(read(row)) != found:
                raise ValueError(
                    f"row {row} of {type(pairs).__name__} gives other pixels when it is read again: its transform is"
                    " random; use that of evaluation"
                )
            return ImageRecord(row, found, int(pairs[row][1]))

        total = len(pairs)
        records = [record(row) for row in _order(total)[:num_images]]
        classes = [str(name) for name in getattr(pairs, "classes", ())]
        return cls(records, read, source=_as_given(type(pairs).__name__, total), label_names=classes)

    @classmethod
    def from_data(
        cls,
        data: ImageData,
        model: nn.Module,
        image_processor: Any,
        num_images: int,
        labels_by_index: bool = False,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ) -> "EvaluationSet":
        """Take the first images of a shuffled data set.

        Data sets are often sorted by class, hence the shuffling. The order is the same for every model and seed, so
        that evaluations can be compared image by image.

        Args:
            data: The data set; its training part is evaluated.
            model: The model, whose class numbers the labels become.
            image_processor: Its image processor. Without one, pictures keep their size.
            num_images: Number of images; all if there are fewer.
            labels_by_index: See [`class_numbers`].
            image_mean, image_std: See [`PixelClassifier`].

        Raises:
            ValueError: The classes do not fit the model, no image can be decoded, or its pixels leave [0, 1].
        """
        # It normalizes and counts classes: whether the model draws noise does not matter.
        classifier = PixelClassifier(model, image_mean, image_std, image_processor=image_processor, random=False)
        config = getattr(unwrap(model), "config", None)
        process, to_pixels = picture_reader(classifier, image_processor)
        channels = getattr(config, "num_channels", len(classifier.image_mean or [0] * 3))
        samples = EvaluationImages(data.train, data.reader(data.train, channels), process)
        number_of: list[int] = []
        if hasattr(config, "label2id"):
            number_of = class_numbers(data, config, labels_by_index)
        images: list[ImageRecord] = []
        undecodable: list[int] = []
        for row in _order(len(samples)):
            if len(images) == num_images:
                break
            sample = samples[row]
            if sample["is_valid"]:
                pixels = to_pixels(sample["pixel_values"])
                if not number_of:
                    number_of = class_numbers(data, _unnamed(classifier, pixels), labels_by_index)
                images.append(ImageRecord(row, _hash(pixels), number_of[sample["labels"]]))
            else:
                undecodable.append(row)
        if not images:
            raise ValueError("none of the images can be decoded: is this the column of images?")
        source = {"dataset": data.name, "dataset_images": len(data.train), "labels_by_index": labels_by_index}
        return cls(
            images,
            lambda row: to_pixels(samples[row]["pixel_values"]),
            tuple(undecodable),
            source,
            tuple(data.label_names),
        )


def check_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Return pixels, or refuse those that are not numbers in [0, 1].

    Raises:
        ValueError: Their type or range is another.
    """
    pixels = torch.as_tensor(pixels)
    if not pixels.is_floating_point():
        raise ValueError(f"images must be pixels in [0, 1], got {pixels.dtype}: for 0..255 pass images / 255")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        advice = "pass images / 255" if low >= 0 and high <= 255 else "pass them as they are before the normalization"
        raise ValueError(f"images must be pixels in [0, 1], got values from {low:g} to {high:g}: {advice}")
    return pixels


def picture_reader(
    classifier: PixelClassifier, image_processor: Any
) -> tuple[Callable[..., Mapping[str, Any]], Callable[[torch.Tensor], torch.Tensor]]:
    """Return an image processor, and a function from its output for one picture to pixels in [0, 1].

    Args:
        classifier: The model, whose normalization is undone.
        image_processor: Its image processor; without one, pictures keep their size, which must be the same for all.
    """
    if image_processor is None:
        shapes: set[tuple[int, ...]] = set()

        def same_size(pixels: torch.Tensor) -> torch.Tensor:
            shapes.add(tuple(pixels.shape))
            if len(shapes) > 1:
                raise ValueError(
                    f"the pictures have different sizes, such as {' and '.join(map(str, sorted(shapes)))}; pass the"
                    " model's image_processor, or images as a tensor"
                )
            return pixels

        return _plain, same_size

    def to_pixels(pixel_values: torch.Tensor) -> torch.Tensor:
        pixels = classifier.to_pixels(pixel_values)
        if pixels.min() < -1e-3 or pixels.max() > 1 + 1e-3:
            raise ValueError(
                f"{type(image_processor).__name__} makes pixels from {pixels.min():.3f} to {pixels.max():.3f}"
                " where [0, 1] is expected; its normalization is not the one that it says"
            )
        # Normalizing and undoing it rounds; the classifier normalizes again.
        return pixels.clamp(0, 1)

    return image_processor, to_pixels


def _plain(picture: Image.Image, return_tensors: str = "pt") -> dict[str, list[torch.Tensor]]:
    """Return the pixels of a picture in [0, 1], as an image processor that does nothing else."""
    values = np.array(picture)
    values = values if values.ndim == 3 else values[:, :, None]
    return {"pixel_values": [torch.from_numpy(values).permute(2, 0, 1) / 255]}


def _order(total: int) -> list[int]:
    return torch.randperm(total, generator=torch.Generator().manual_seed(0)).tolist()


def _as_given(name: str, total: int) -> dict[str, Any]:
    return {"dataset": name, "dataset_images": total, "split": "as given", "labels_by_index": True}


def _unnamed(classifier: PixelClassifier, pixels: torch.Tensor) -> Any:
    """Return the classes of a model without a config, as a config would hold them."""
    device = classifier.where_the_model_is.device
    # Noise of the model's own is drawn from the global generator.
    with torch.no_grad(), forked_rng(device):
        number = classifier(pixels[None].to(device)).shape[-1]
    return SimpleNamespace(num_labels=number, label2id={f"LABEL_{index}": index for index in range(number)})


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
        " order is the same, choose labels_by_index"
    )


def add_split_arguments(group: Any) -> None:
    """Add the arguments that [`load_split`] reads, and `--labels_by_index`, to a parser or a group of one."""
    group.add_argument(
        "--dataset_name",
        help="a data set on the Hub, a folder (of parquet files, of images in one folder per class, or written by"
        " save_to_disk) or a .parquet file",
    )
    group.add_argument("--dataset_config_name", help="configuration of a data set that has several")
    group.add_argument(
        "--split", help="split of the images; if left out, test, or all images of a folder that has no splits"
    )
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
        args: Parsed arguments of [`add_split_arguments`]. `split` is set if it was left out.

    Raises:
        ValueError: See [`ImageSource`] and its `load`.
    """
    if args.split is None:
        folders = ImageSource(args.dataset_name, args.dataset_config_name).picture_folders() or {}
        args.split = next(iter(folders)) if len(folders) == 1 else "test"
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


def find_split(images: Any, split: str | None = None) -> tuple[ImageData, str]:
    """Find the images of one split of a data set, as the training part of the data.

    Args:
        images: A data set of `datasets`, a mapping of splits, or a name or path as [`ImageSource`] takes it.
        split: Name of the split. By default the test split, otherwise one for validation, otherwise the only one.

    Returns:
        The data and the name of the split.

    Raises:
        ValueError: There is no such split, or no images or labels in it.
    """
    name = None
    if not hasattr(images, "column_names") or isinstance(images, Mapping):
        if not isinstance(images, Mapping):
            name = str(images)
            images = ImageSource(name).all_splits()
        if split is None:
            split = next((usual for usual in _SPLITS if usual in images), None)
            split = next(iter(images)) if split is None and len(images) == 1 else split
        if split not in images:
            raise ValueError(f"there is no split {split!r}; choose one of {sorted(images)} with split")
        images = images[split]
    elif split is not None:
        raise ValueError(f"a data set without splits was given: leave out split={split!r}")
    # The name that the data set was loaded by, if it was.
    name = name or getattr(images.info, "dataset_name", None) or "data set"
    return describe_data(images, name), split or str(images.split or "as given")
