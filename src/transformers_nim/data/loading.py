# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Finds images and labels: on the Hub, in folders, in parquet files, on disk or in a stream."""

import glob
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from PIL import Image
from transformers.utils import logging

from ..model.image_processing_nim import convert_image
from ..utils.extras import require


logger = logging.get_logger(__name__)

_IMAGE_COLUMNS = ("image", "img", "pixel_values", "jpg", "png")
_LABEL_COLUMNS = ("label", "labels", "cls", "fine_label")
_VALIDATION_SEED = 0
_VALIDATION_SPLITS = ("validation", "valid", "val")


class UnknownLabelError(ValueError):
    """A row's label is none of the classes to train on."""


def decode_picture(value: Any, num_channels: int, token: str | None = None) -> Image.Image:
    """Opens what a data set holds as an image: encoded bytes, a path or URL, a PIL image or an array.

    Args:
        value: A cell of the image column.
        num_channels: 1 for a grey picture, 3 for RGB.
        token: Token for files of private data sets on the Hub, which streams of image folders have the URLs of.

    Returns:
        An upright 8-bit picture with that many channels, all its pixels read.

    Raises:
        Exception: It is not a readable picture. Pillow's decoders raise almost anything when a file is broken.
    """
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise ValueError("the row holds no image")
    if isinstance(value, str) and "://" in value:
        with fsspec.open(value, hf={"token": token}) as file:
            value = file.read()
    if isinstance(value, bytes):
        value = BytesIO(value)
    elif isinstance(value, (list, np.ndarray)):
        value = _from_array(np.asarray(value))
    picture = value if isinstance(value, Image.Image) else Image.open(value)
    return convert_image(picture, num_channels)


def _from_array(values: np.ndarray) -> Image.Image:
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
        raise ValueError(f"an image must be an array of integers from 0 to 255, got {values.dtype}")
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    return Image.fromarray(values.astype(np.uint8))


@dataclass(frozen=True)
class ImageData:
    """Images to train on and to validate with, as [`load_image_data`] found them.

    Attributes:
        name: What to call the data on cards.
        train: A `datasets.Dataset` or, streamed, a `datasets.IterableDataset`.
        validation: A `datasets.Dataset`, or None.
        image_column: Name of the column of images; they are not yet decoded.
        label_column: Name of the column of labels, or None where none was asked for.
        label_names: The classes, in the order of their indices.
        token: Token for images that are still on the Hub.
    """

    name: str
    train: Any
    validation: Any
    image_column: str
    label_column: str | None = None
    label_names: list[str] | None = None
    token: str | None = field(default=None, repr=False)

    @property
    def is_streamed(self) -> bool:
        """Whether the training images have no number and no length."""
        return not hasattr(self.train, "__len__")

    def label_reader(self, rows: Any) -> Callable[[Mapping[str, Any]], int]:
        """A function from a row of `rows` (train or validation, whose classes can be numbered otherwise) to its class.

        Without labels it returns 0.

        Raises:
            ValueError: (the function) A label is not one of the classes to train on.
        """
        classes = self.label_names or []
        index: dict[Any, int] = {name: number for number, name in enumerate(classes)}
        names = getattr((rows.features or {}).get(self.label_column), "names", None)
        if names is not None:
            index = {number: index[name] for number, name in enumerate(names) if name in index}
        return _LabelReader(self.label_column, names, classes, index)


@dataclass(frozen=True)
class _LabelReader:
    # A class, because a closure cannot be sent to worker processes.
    column: str | None
    names: list[str] | None
    classes: list[str]
    # From numbers if `names` says what they mean, else from text.
    index: dict[Any, int]

    def __call__(self, row: Mapping[str, Any]) -> int:
        if self.column is None:
            return 0
        value = row[self.column]
        found = self.index.get(str(value) if self.names is None else value)
        if found is None:
            names = self.names or []
            name = names[value] if isinstance(value, int) and 0 <= value < len(names) else value
            known = ", ".join(self.classes[:10]) + (", ..." if len(self.classes) > 10 else "")
            raise UnknownLabelError(
                f"a row has the label {name!r}, which is none of the {len(self.classes)} classes to train on"
                f" ({known}); test splits often come without labels"
            )
        return found


def load_image_data(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_dir: str | None = None,
    validation_dir: str | None = None,
    train_split_name: str = "train",
    validation_split_name: str | None = None,
    train_val_split: float = 0.1,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    with_labels: bool = False,
    streaming: bool = False,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    shuffle_buffer: int = 10_000,
    seed: int = 0,
    cache_dir: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> ImageData:
    """Loads images from wherever they are.

    Args:
        dataset_name: A name on the Hub, a folder (of parquet files, of images in one folder per class, or written by
            `save_to_disk`) or a `.parquet` file.
        dataset_config_name: Configuration of a data set that has several.
        train_dir: Instead of a name: a folder with one folder of images per class.
        validation_dir: Another such folder, for validation.
        train_split_name: Split to train on.
        validation_split_name: Split to validate with. By default one called validation, valid or val if there is one;
            a test split is never taken unasked.
        train_val_split: Without a validation split: part of the training images to hold out, in [0, 1). 0 for none.
            A stream holds out none.
        image_column_name: Column of images; found by its type or name by default.
        label_column_name: Column of labels; likewise.
        with_labels: Whether labels are needed.
        streaming: Whether to read the training images while they are downloaded. Validation images are then read
            once and kept in memory.
        max_train_samples: How many images to train on at most. They are chosen at random, except from a stream: it
            gives the first ones, in equal parts of every process and worker.
        max_eval_samples: How many to validate with at most (likewise); 1000 by default for a stream.
        shuffle_buffer: How many images of a stream wait to be drawn at random.
        seed: Seed of the choice of training images and of the order of a stream. Validation images are the same with
            every seed, so that runs can be compared and no pretraining sees those of fine-tuning.
        cache_dir: Where downloads are kept.
        revision: Version of a data set on the Hub.
        token: Token for private data sets.

    Raises:
        ValueError: Neither name nor folder is given, or both; a split or column does not exist; labels are missing;
            a number is out of range.
    """
    datasets = require("datasets")
    if (dataset_name is None) == (train_dir is None):
        raise ValueError("give either a dataset_name or a train_dir (a folder with one folder of images per class)")
    if validation_dir is not None and train_dir is None:
        raise ValueError("a validation_dir goes with a train_dir; for a dataset_name pass validation_split_name")
    if not 0 <= train_val_split < 1:
        raise ValueError(f"train_val_split must be at least 0 and less than 1, got {train_val_split}")
    for name, value in (
        ("max_train_samples", max_train_samples),
        ("max_eval_samples", max_eval_samples),
        ("shuffle_buffer", shuffle_buffer),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if train_dir is not None:
        splits: Mapping[str, Any] = {"train": _image_folder(train_dir, streaming, cache_dir)}
        train_split_name = "train"
        if validation_dir is not None:
            # It need not have all classes, and may have but one, which `datasets` would not call a label by itself.
            validation = _image_folder(validation_dir, streaming, cache_dir, drop_labels=False)
            splits = {**splits, "validation": validation}
    elif streaming and _is_saved_to_disk(dataset_name):
        raise ValueError(f"{dataset_name} was written by save_to_disk and is read by rows; leave out streaming")
    else:
        splits = _load_splits(dataset_name, dataset_config_name, streaming, cache_dir, revision, token)
    if train_split_name not in splits:
        raise ValueError(f"there is no split {train_split_name!r} to train on; there are {sorted(splits)}")
    if validation_split_name is None:
        validation_split_name = next((name for name in _VALIDATION_SPLITS if name in splits), None)
    elif validation_split_name not in splits:
        raise ValueError(f"there is no split {validation_split_name!r} to validate with; there are {sorted(splits)}")

    train = splits[train_split_name]
    validation = splits[validation_split_name] if validation_split_name is not None else None
    image_column = _find_column(train, image_column_name, _IMAGE_COLUMNS, datasets.Image, "image_column_name")
    label_column = label_names = None
    if with_labels:
        label_column = _find_column(train, label_column_name, _LABEL_COLUMNS, datasets.ClassLabel, "label_column_name")
        label_names = _label_names(train, label_column)
    columns = [image_column] if label_column is None else [image_column, label_column]
    train = _undecoded(train, columns)
    if validation is not None:
        missing = [column for column in columns if column not in (validation.column_names or columns)]
        if missing:
            raise ValueError(
                f"the split to validate with has no column {missing[0]!r}; there are {validation.column_names}"
            )
        validation = _undecoded(validation, columns)

    if validation is None and train_val_split and not streaming:
        order = np.random.default_rng(_VALIDATION_SEED).permutation(len(train))
        held_out, kept = np.split(order, [max(1, round(train_val_split * len(train)))])
        # In memory, because the folder of a saved data set need not be writable.
        train, validation = (train.select(np.sort(part), keep_in_memory=True) for part in (kept, held_out))
    if streaming:
        if validation is not None:
            # Rows by number, so that every process finds its own.
            rows = list(validation.take(max_eval_samples or 1000))
            validation = datasets.Dataset.from_list(rows, features=validation.features) if rows else rows
        if max_train_samples is not None:
            train = train.take(max_train_samples)
        # From one shard at a time: interleaving them leaves workers without images in datasets 5.1, and rests for five
        # seconds at the end of every epoch.
        train = train.shuffle(seed=seed, buffer_size=shuffle_buffer, max_buffer_input_shards=1)
    else:
        train = _choose(train, max_train_samples, seed)
        validation = _choose(validation, max_eval_samples, _VALIDATION_SEED) if validation is not None else None
    if any(rows is not None and hasattr(rows, "__len__") and len(rows) == 0 for rows in (train, validation)):
        raise ValueError("there are no images to train on or to validate with; check the splits")
    name = str(train_dir or dataset_name)
    if os.path.exists(name):
        # Where the folder lay is nobody's concern on a card.
        name = Path(name).resolve().name
    return ImageData(name, train, validation, image_column, label_column, label_names, token)


def _is_saved_to_disk(name: str | None) -> bool:
    return any(os.path.isfile(os.path.join(name or "", file)) for file in ("state.json", "dataset_dict.json"))


def _image_folder(folder: str, streaming: bool, cache_dir: str | None, drop_labels: bool | None = None):
    if not os.path.isdir(folder):
        raise ValueError(f"no such folder of images: {folder}")
    # All files as one split: data_dir= would make splits of folders that are called train or test. A pattern for each
    # class, because ** does not look into folders that are links.
    root = os.path.abspath(folder)
    classes = sorted((e for e in os.scandir(root) if e.is_dir() and not e.name.startswith(".")), key=lambda e: e.name)
    if glob.escape(root) != root and any(entry.is_symlink() for entry in classes):
        raise ValueError(f"the folder {folder} has links in it, which cannot be read where a name has one of *?[")
    patterns = [os.path.join(glob.escape(root), "*")]
    patterns += [os.path.join(glob.escape(entry.path), "**") for entry in classes]
    try:
        return require("datasets").load_dataset(
            "imagefolder",
            data_files={"train": patterns},
            split="train",
            streaming=streaming,
            cache_dir=cache_dir,
            drop_labels=drop_labels,
        )
    except ValueError as error:
        raise ValueError(f"cannot read images from the folder {folder}: {error}") from error


def _load_splits(name, config_name, streaming, cache_dir, revision, token) -> Mapping[str, Any]:
    datasets = require("datasets")
    if _is_saved_to_disk(name):
        loaded = datasets.load_from_disk(name)
    elif os.path.isfile(name) or name.endswith(".parquet"):
        if not os.path.isfile(name):
            raise ValueError(f"no such file: {name}")
        if not name.endswith(".parquet"):
            raise ValueError(f"a data set in a single file must be a .parquet file, got {name}")
        files = {"train": glob.escape(os.path.abspath(name))}
        loaded = datasets.load_dataset("parquet", data_files=files, streaming=streaming, cache_dir=cache_dir)
    else:
        loaded = datasets.load_dataset(
            name, config_name, streaming=streaming, cache_dir=cache_dir, revision=revision, token=token
        )
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


def _find_column(dataset, name: str | None, usual: Sequence[str], feature: type, option: str) -> str:
    # Some streams do not know their columns.
    columns = dataset.column_names or []
    if name is not None:
        if columns and name not in columns:
            raise ValueError(f"{option}: there is no column {name!r}; there are {columns}")
        return name
    features = dataset.features or {}
    candidates = [column for column in columns if isinstance(features.get(column), feature)]
    named = [column for column in usual if column in columns]
    # A data set with several columns of the type (coarse and fine labels, say) is decided by name.
    for found in (candidates if len(candidates) == 1 else [], [c for c in named if c in candidates], named):
        if found:
            return found[0]
    hint = " (a folder of images has labels if there are two classes or more, with a folder for each)"
    raise ValueError(
        f"cannot tell which of the columns {columns} to use; pass {option}{hint if usual is _LABEL_COLUMNS else ''}"
    )


def _label_names(dataset, column: str) -> list[str]:
    names = getattr((dataset.features or {}).get(column), "names", None)
    if names:
        return list(names)
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            f"the labels in the column {column!r} of this stream have no names; cast the column to ClassLabel, or"
            " train without streaming"
        )
    feature = dataset.features[column]
    values = dataset.unique(column) if isinstance(feature, require("datasets").Value) else [feature]
    if not all(isinstance(value, (str, int)) for value in values):
        raise ValueError(f"the column {column!r} does not hold class labels, but {values[:3]}")
    return [str(value) for value in sorted(values)]


def _undecoded(dataset, columns: list[str]):
    """These columns only (others could hold pictures too), and bytes for images: a broken one must not end the run."""
    datasets = require("datasets")
    if not hasattr(dataset, "__len__"):
        # cast_column would not reach the threads that decode streams of image folders on the Hub.
        return (dataset.decode(False) if dataset.features else dataset).select_columns(columns)
    # A saved data set can have a format such as torch's.
    dataset = dataset.select_columns(columns).with_format(None)
    if isinstance(dataset.features[columns[0]], datasets.Image):
        return dataset.cast_column(columns[0], datasets.Image(decode=False))
    return dataset


def _choose(dataset, limit: int | None, seed: int):
    if limit is None or limit >= len(dataset):
        return dataset
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:limit]
    return dataset.select(np.sort(chosen))
