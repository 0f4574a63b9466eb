# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Find images and labels: on the Hub, in folders, in parquet files, on disk or in a stream."""

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from ..model.checks_nim import check_counts
from ..model.image_processing_nim import array_to_picture, convert_image, load_picture, open_picture
from ..utils.extras import require
from .picture_folders import check_classes, is_folder_of_pictures, picture_splits


logger = logging.get_logger(__name__)

_IMAGE_COLUMNS = ("image", "img", "pixel_values", "jpg", "png")
_LABEL_COLUMNS = ("label", "labels", "cls", "fine_label")
_VALIDATION_SEED = 0
_VALIDATION_SPLITS = ("validation", "valid", "val")


class UnknownLabelError(ValueError):
    """A row's label is none of the classes to train on."""


def decode_picture(value: Any, num_channels: int, token: str | None = None) -> Image.Image:
    """Decode an image of a data set: encoded bytes, a path or URL, a PIL image or an array.

    Arrays, and lists of numbers, follow the rule that [`NIMImageProcessor`] states, and are rounded to 8 bits.

    Args:
        value: The row's value in the image column.
        num_channels: 1 for a grey picture, 3 for RGB.
        token: Token for files of private data sets on the Hub, to which streams of image folders hold URLs.

    Returns:
        An upright 8-bit picture with that many channels, all its pixels read.

    Raises:
        Exception: It is no readable picture. Pillow's decoders raise almost anything when a file is broken.
    """
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise ValueError("the row holds no image")
    if isinstance(value, str) and "://" in value and not value.startswith(("http://", "https://")):
        with fsspec.open(value, hf={"token": token}) as file:
            return convert_image(open_picture(BytesIO(file.read()), value), num_channels)
    if isinstance(value, bytes):
        value = open_picture(BytesIO(value), "in the row")
    elif isinstance(value, str) and "://" not in value:
        value = open_picture(value)
    elif isinstance(value, list):
        value = np.asarray(value)
    if isinstance(value, (np.ndarray, torch.Tensor)):
        value = array_to_picture(value)
    return convert_image(load_picture(value), num_channels)


@dataclass(frozen=True)
class ImageData:
    """Images to train on and to validate with, as [`ImageSource`] found them.

    Attributes:
        name: What to call the data on cards.
        train: A `datasets.Dataset` or, streamed, a `datasets.IterableDataset`.
        validation: A `datasets.Dataset`, or None.
        image_column: Name of the column of images; they are not yet decoded.
        label_column: Name of the column of labels; None if labels are not needed.
        label_names: The classes, in the order of their indices; empty if labels are not needed.
        token: Token for images that are still on the Hub.
        unshuffled: The stream to train on in its own order; None for rows by number.
    """

    name: str
    train: Any
    validation: Any
    image_column: str
    label_column: str | None = None
    label_names: list[str] = field(default_factory=list)
    token: str | None = field(default=None, repr=False)
    unshuffled: Any = None

    @property
    def is_streamed(self) -> bool:
        """Tell whether the training images come as a stream, without row numbers and of unknown length."""
        return not hasattr(self.train, "__len__")

    def reader(self, rows: Any, num_channels: int) -> "RowReader":
        """Return a reader of `rows`, those to train on or to validate with, as pictures of 1 or 3 channels."""
        names = getattr((rows.features or {}).get(self.label_column), "names", None)
        return RowReader(self.image_column, num_channels, self.label_column, self.label_names, names, self.token)


@dataclass(frozen=True)
class RowReader:
    """Read picture and class of a row.

    Attributes:
        image_column: Column of images.
        num_channels: Channels of the pictures, 1 or 3.
        label_column: Column of labels; without one, every class is 0.
        classes: Classes to train on.
        names: Names of the classes as the rows number them; None if the rows hold names.
        token: Token for images that are still on the Hub.
    """

    image_column: str
    num_channels: int
    label_column: str | None = None
    classes: Sequence[str] = ()
    names: Sequence[str] | None = None
    token: str | None = field(default=None, repr=False)

    @cached_property
    def _index(self) -> dict[Any, int]:
        index = {name: number for number, name in enumerate(self.classes)}
        if self.names is None:
            return index
        return {number: index[name] for number, name in enumerate(self.names) if name in index}

    def __call__(self, row: Mapping[str, Any]) -> tuple[Image.Image | Exception, int]:
        """Return the picture, or the error that decoding it raised, and the class.

        Raises:
            UnknownLabelError: The label is none of the classes to train on.
        """
        label = self.label(row)
        try:
            return decode_picture(row[self.image_column], self.num_channels, self.token), label
        except Exception as error:
            return error, label

    def label(self, row: Mapping[str, Any]) -> int:
        """Return the class of a row, as an index into `classes`.

        Raises:
            UnknownLabelError: The label is none of the classes to train on.
        """
        if self.label_column is None:
            return 0
        value = row[self.label_column]
        found = self._index.get(str(value) if self.names is None else value)
        if found is None:
            names = self.names or []
            name = names[value] if isinstance(value, int) and 0 <= value < len(names) else value
            known = ", ".join(self.classes[:10]) + (", ..." if len(self.classes) > 10 else "")
            raise UnknownLabelError(
                f"a row has the label {name!r}, which is none of the {len(self.classes)} classes to train on"
                f" ({known}); test splits often come without labels"
            )
        return found

    def name(self, place: str, row: Mapping[str, Any]) -> str:
        """Return what to call a row in messages: its place, and the path of its image if it has one."""
        value = row[self.image_column]
        path = value.get("path") if isinstance(value, Mapping) else value
        return f"{place} ({path})" if isinstance(path, str) else place


@dataclass(frozen=True)
class ImageSource:
    """Where images are, and which of them to take.

    Attributes:
        dataset_name: A name on the Hub, a folder (of parquet files, of images in one folder per class, or written by
            `save_to_disk`) or a `.parquet` file.
        dataset_config_name: Configuration of a data set that has several.
        dataset_revision: Version of a data set on the Hub.
        train_dir: Instead of a name: a folder with one folder of images per class, or with such folders called train,
            val and test.
        validation_dir: Another such folder, for validation.
        train_split_name: Split to train on.
        validation_split_name: Split to validate with. By default the one called validation, valid or val, if any; a
            test split is taken only when it is named.
        train_val_split: Without a validation split: share of the training images to hold out, in [0, 1). 0 for none.
            A stream holds out none.
        image_column_name: Column of images; found by its type or name by default.
        label_column_name: Column of labels; likewise.
        max_train_samples: Number of images to train on at most. They are chosen at random; of a stream, every process
            and worker takes its first ones, in equal parts.
        max_eval_samples: Number of images to validate with at most (likewise); 1000 by default for a stream.
        streaming: Whether to read the training images while they are downloaded. Validation images are then read
            once and kept in memory.
        shuffle_buffer: Number of images of a stream that wait to be drawn at random.
        seed: Seed of the choice of training images and of the order of a stream. Validation images are the same with
            every seed: runs can be compared, and no pretraining sees the validation images of fine-tuning.
        cache_dir: Where downloads are kept.
        token: Token for private data sets.

    Raises:
        ValueError: Neither name nor folder is given, or both; a number is out of range.
    """

    dataset_name: str | None = None
    dataset_config_name: str | None = None
    dataset_revision: str | None = None
    train_dir: str | None = None
    validation_dir: str | None = None
    train_split_name: str = "train"
    validation_split_name: str | None = None
    train_val_split: float = 0.1
    image_column_name: str | None = None
    label_column_name: str | None = None
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    streaming: bool = False
    shuffle_buffer: int = 10_000
    seed: int = 0
    cache_dir: str | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.dataset_name is None) == (self.train_dir is None):
            raise ValueError(
                "give either a dataset_name or a train_dir (a folder with one folder of images per class)"
            )
        if self.validation_dir is not None and self.train_dir is None:
            raise ValueError("a validation_dir goes with a train_dir; for a dataset_name pass validation_split_name")
        if not 0 <= self.train_val_split < 1:
            raise ValueError(f"train_val_split must be at least 0 and less than 1, got {self.train_val_split}")
        check_counts(
            max_train_samples=self.max_train_samples,
            max_eval_samples=self.max_eval_samples,
            shuffle_buffer=self.shuffle_buffer,
        )

    def load(self, with_labels: bool = False) -> ImageData:
        """Find the images.

        Args:
            with_labels: Whether labels are needed.

        Raises:
            ValueError: A split or column does not exist, labels are missing, or there are no images.
        """
        train, validation = self._splits(with_labels)
        image_column, label_column, label_names = _find_columns(
            train, self.image_column_name, self.label_column_name, with_labels
        )
        columns = [image_column] if label_column is None else [image_column, label_column]
        train = _undecoded(train, columns)
        if validation is not None:
            missing = [column for column in columns if column not in (validation.column_names or columns)]
            if missing:
                raise ValueError(
                    f"the split to validate with has no column {missing[0]!r}; there are {validation.column_names}"
                )
            validation = _undecoded(validation, columns)
        unshuffled = train if self.streaming else None
        train, validation = (self._choose_streamed if self.streaming else self._choose)(train, validation)
        if any(rows is not None and hasattr(rows, "__len__") and len(rows) == 0 for rows in (train, validation)):
            raise ValueError("there are no images to train on or to validate with; check the splits")
        name = _public_name(str(self.train_dir or self.dataset_name))
        return ImageData(name, train, validation, image_column, label_column, label_names, self.token, unshuffled)

    def all_splits(self) -> Mapping[str, Any]:
        """Return every split of the data set by its name."""
        folders = self.picture_folders()
        if folders is None:
            return _load_splits(self)
        return {name: self._read_pictures(folder, True, False) for name, folder in folders.items()}

    def _splits(self, with_labels: bool) -> tuple[Any, Any]:
        """Return the rows to train on, and those to validate with or None."""
        folders = self.picture_folders()
        splits: Mapping[str, Any] = folders if folders is not None else _load_splits(self)
        train_name = "train" if self.train_dir is not None else self.train_split_name
        if train_name not in splits:
            raise ValueError(f"there is no split {train_name!r} to train on; there are {sorted(splits)}")
        name = self.validation_split_name
        if name is None:
            name = next((usual for usual in _VALIDATION_SPLITS if usual in splits), None)
        elif name not in splits:
            raise ValueError(f"there is no split {name!r} to validate with; there are {sorted(splits)}")
        if folders is None:
            return splits[train_name], splits[name] if name is not None else None
        train, validation = (
            self._read_pictures(folders[split], with_labels, split == "train") if split is not None else None
            for split in (train_name, name)
        )
        return train, validation

    def _read_pictures(self, folder: str, with_labels: bool, is_whole: bool) -> Any:
        if with_labels:
            check_classes(folder, is_whole)
        # Splits other than that for training may lack classes, or have a single one, which `datasets` would not call a
        # label by itself.
        return _image_folder(folder, self.streaming, self.cache_dir, None if is_whole else False)

    def picture_folders(self) -> dict[str, str] | None:
        """Return the folders of pictures by split, or None if the images are somewhere else."""
        folder = self.train_dir or str(self.dataset_name)
        if self.train_dir is None:
            # Tables and archives, and folders that say themselves how to be read, are for `datasets`.
            is_other = self.dataset_config_name is not None or not os.path.isdir(folder) or _is_saved_to_disk(folder)
            if is_other or not is_folder_of_pictures(folder):
                return None
        elif not os.path.isdir(folder):
            raise ValueError(f"no such folder of images: {folder}")
        found = picture_splits(folder) or {"train": folder}
        return found if self.validation_dir is None else {**found, "validation": self.validation_dir}

    def _choose(self, train: Any, validation: Any) -> tuple[Any, Any]:
        if validation is None and self.train_val_split:
            order = np.random.default_rng(_VALIDATION_SEED).permutation(len(train))
            held_out, kept = np.split(order, [max(1, round(self.train_val_split * len(train)))])
            # In memory, because the folder of a saved data set need not be writable.
            train, validation = (train.select(np.sort(part), keep_in_memory=True) for part in (kept, held_out))
        train = _some_rows(train, self.max_train_samples, self.seed)
        if validation is not None:
            validation = _some_rows(validation, self.max_eval_samples, _VALIDATION_SEED)
        return train, validation

    def _choose_streamed(self, train: Any, validation: Any) -> tuple[Any, Any]:
        if validation is not None:
            # Rows by number, so that every process finds its own.
            rows = list(validation.take(self.max_eval_samples or 1000))
            validation = require("datasets").Dataset.from_list(rows, features=validation.features) if rows else rows
        if self.max_train_samples is not None:
            train = train.take(self.max_train_samples)
        # One shard at a time: interleaving them leaves workers without images in datasets 5.1, and pauses for five
        # seconds at the end of every epoch.
        train = train.shuffle(seed=self.seed, buffer_size=self.shuffle_buffer, max_buffer_input_shards=1)
        return train, validation


def describe_data(dataset: Any, name: str) -> ImageData:
    """Describe a `datasets.Dataset` of images and labels, as the training part of the data.

    Args:
        dataset: Its columns of images and labels are found by their types or names.
        name: Name or path of the data set.

    Raises:
        ValueError: It has no such columns, or no rows by number.
    """
    if not hasattr(dataset, "__len__") or len(dataset) == 0:
        raise ValueError("the data set needs at least one row, and rows by number: load it without streaming")
    image_column, label_column, label_names = _find_columns(dataset, None, None, with_labels=True)
    rows = _undecoded(dataset, [image_column, str(label_column)])
    return ImageData(_public_name(name), rows, None, image_column, label_column, label_names)


def _public_name(name: str) -> str:
    # Where the folder lies is not to be published on a card.
    return Path(name).resolve().name if os.path.exists(name) else name


def _is_saved_to_disk(name: str) -> bool:
    return any(os.path.isfile(os.path.join(name, file)) for file in ("state.json", "dataset_dict.json"))


def _image_folder(folder: str, streaming: bool, cache_dir: str | None, drop_labels: bool | None = None):
    if not os.path.isdir(folder):
        raise ValueError(f"no such folder of images: {folder}")
    # All files as one split: data_dir= would turn folders called train or test into splits. One pattern per class,
    # because ** does not follow links.
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


def _load_splits(source: ImageSource) -> Mapping[str, Any]:
    datasets = require("datasets")
    name, streaming = str(source.dataset_name), source.streaming
    if _is_saved_to_disk(name):
        if streaming:
            raise ValueError(f"{name} was written by save_to_disk and is read by rows; leave out streaming")
        loaded = datasets.load_from_disk(name)
    elif os.path.isfile(name) or name.endswith(".parquet"):
        if not os.path.isfile(name):
            raise ValueError(f"no such file: {name}")
        if not name.endswith(".parquet"):
            raise ValueError(f"a data set in a single file must be a .parquet file, got {name}")
        files = {"train": glob.escape(os.path.abspath(name))}
        loaded = datasets.load_dataset("parquet", data_files=files, streaming=streaming, cache_dir=source.cache_dir)
    else:
        loaded = datasets.load_dataset(
            name,
            source.dataset_config_name,
            streaming=streaming,
            cache_dir=source.cache_dir,
            revision=source.dataset_revision,
            token=source.token,
        )
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


def _find_columns(
    dataset: Any, image_column: str | None, label_column: str | None, with_labels: bool
) -> tuple[str, str | None, list[str]]:
    """Return the columns of images and labels, and the names of the classes."""
    datasets = require("datasets")
    image_column = _find_column(dataset, image_column, _IMAGE_COLUMNS, datasets.Image, "image_column_name")
    if not with_labels:
        return image_column, None, []
    label_column = _find_column(dataset, label_column, _LABEL_COLUMNS, datasets.ClassLabel, "label_column_name")
    return image_column, label_column, _label_names(dataset, label_column)


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
    # The name decides between several columns of the type (coarse and fine labels, say).
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
    """Keep these columns only (others may hold pictures too), images as bytes: a broken one must not end the run."""
    datasets = require("datasets")
    if not hasattr(dataset, "__len__"):
        # cast_column would not reach the threads that decode streams of image folders on the Hub.
        return (dataset.decode(False) if dataset.features else dataset).select_columns(columns)
    # A saved data set can have a format such as torch's.
    dataset = dataset.select_columns(columns).with_format(None)
    if isinstance(dataset.features[columns[0]], datasets.Image):
        return dataset.cast_column(columns[0], datasets.Image(decode=False))
    return dataset


def _some_rows(dataset, limit: int | None, seed: int):
    if limit is None or limit >= len(dataset):
        return dataset
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:limit]
    return dataset.select(np.sort(chosen))
