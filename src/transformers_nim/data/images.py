# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Endless batches of augmented images that can be entered at any place, and batches to evaluate on.

What a sample looks like depends on the run's seed, the epoch and the image alone. So a resumed run sees what the
uninterrupted one would have seen, and the same images make up a step however many processes share it.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from ..utils.extras import require
from ..utils.seeding import derive_seed_32
from .augmentation import Transform
from .loading import ImageData, decode_picture


Batch = dict[str, Any]

# So many undecodable images in a row are no accident: the folder has gone, or the column is not one of images.
_MAX_UNDECODABLE_IN_A_ROW = 50


@dataclass(frozen=True)
class RowReader:
    """Reads picture and label of a row.

    Attributes:
        column: The column of images.
        label_of: From a row to its class.
        num_channels: Channels of the pictures.
        token: Token for images that are still on the Hub.
    """

    column: str
    label_of: Callable[[Mapping[str, Any]], int]
    num_channels: int
    token: str | None = None

    @classmethod
    def of(cls, data: ImageData, rows: Any, num_channels: int) -> "RowReader":
        """The reader of `rows`, which are those of `data` to train on or to validate with."""
        return cls(data.image_column, data.label_reader(rows), num_channels, data.token)

    def __call__(self, row: Mapping[str, Any]) -> tuple[Image.Image | Exception, int]:
        """The picture, or why it cannot be decoded, and the label."""
        label, cell = self.label_of(row), row[self.column]
        try:
            return decode_picture(cell, self.num_channels, self.token), label
        except Exception as error:
            return error, label

    def name(self, place: str, row: Mapping[str, Any]) -> str:
        """What to call a row: its place, and the path of its image if it has one."""
        cell = row[self.column]
        path = cell.get("path") if isinstance(cell, Mapping) else cell
        return f"{place} ({path})" if isinstance(path, str) else place


class TrainingImages(Dataset):
    """Augmented images by `(epoch, row)`. A picture that cannot be decoded is replaced by the next one that can.

    Args:
        rows: Undecoded rows.
        read: Reads them.
        transform: From a picture and a seed to normalized pixels.
        seed: The run's seed.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], read: RowReader, transform: Transform, seed: int):
        self.rows, self.read, self.transform, self.seed = rows, read, transform, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, row = key
        candidates = ((row + step) % len(self.rows) for step in itertools.count())
        picture, label, undecodable = _first_decodable(((str(i), self.rows[i]) for i in candidates), self.read)
        return _sample(picture, label, undecodable, self.transform, (self.seed, epoch, row))


class EndlessBatches(Sampler[list[tuple[int, int]]]):
    """Batches of `(epoch, row)` for one process; every epoch has an order of its own, and they follow without a gap.

    Args:
        num_rows: Number of images.
        batch_size: Images per batch and process.
        seed: The run's seed.
        num_processes: Processes that share the images.
        process_index: Which of them this is.
        first_batch: Number of batches that each process has had already.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        seed: int,
        num_processes: int = 1,
        process_index: int = 0,
        first_batch: int = 0,
    ):
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.stride = batch_size * num_processes
        self.first = first_batch * self.stride + process_index * batch_size
        self.orders: dict[int, torch.Tensor] = {}

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in itertools.count(self.first, self.stride):
            yield [self._key(position) for position in range(start, start + self.batch_size)]

    def _key(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self.num_rows)
        if epoch not in self.orders:
            generator = torch.Generator().manual_seed(derive_seed_32(self.seed, "order", epoch))
            # Two epochs at most: a batch can lie across the end of one.
            self.orders = {k: v for k, v in self.orders.items() if k == epoch - 1}
            self.orders[epoch] = torch.randperm(self.num_rows, generator=generator)
        return epoch, int(self.orders[epoch][place])


class StreamedImages(IterableDataset):
    """Augmented images of a `datasets.IterableDataset`, epoch after epoch without end.

    The n-th sample is the n-th row or, if that cannot be decoded, the next that can: so a stream can be entered at
    any sample by passing over as many rows, without decoding them.

    Args:
        stream: The rows of one process, undecoded.
        read, transform, seed: As for [`TrainingImages`].
        stream_index: A number for the process, to tell its draws from those of the others.
        batch_size: Images per batch.
        first_batch: Batches that were had already, a multiple of the number of DataLoader workers.
    """

    def __init__(
        self,
        stream: Any,
        read: RowReader,
        transform: Transform,
        seed: int,
        stream_index: int,
        batch_size: int,
        first_batch: int = 0,
    ):
        self.stream, self.read, self.transform = stream, read, transform
        self.seed, self.stream_index = seed, stream_index
        self.batch_size, self.first_batch = batch_size, first_batch

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        first = self.first_batch // num_workers * self.batch_size
        rows = itertools.islice(self._rows(), first, None)
        ahead: deque[tuple[str, Mapping[str, Any]]] = deque()
        for number in itertools.count(first):
            picture, label, undecodable = _first_decodable(_peek(ahead, rows), self.read)
            ahead.popleft()
            key = (self.seed, self.stream_index, worker_id, number)
            yield _sample(picture, label, undecodable, self.transform, key)

    def _rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        worker = get_worker_info()
        prefix = f"{self.stream_index}.{worker.id if worker is not None else 0}"
        # A copy, because `datasets` shares the number of the epoch among workers, which do not change it together.
        stream = self.stream.with_format(None)
        is_empty = True
        for epoch in itertools.count():
            stream.set_epoch(epoch)
            for number, row in enumerate(stream):
                # Its place in the shuffled stream is all the name that a row has.
                yield f"{prefix}.{epoch}.{number}", row
                is_empty = False
            if is_empty:
                raise ValueError(
                    "the stream holds no images for this process or worker; check the split, or use fewer of them"
                )


def _peek(ahead: deque, rows: Iterator) -> Iterator:
    """What is in `ahead`, then what follows in `rows`, all of which stays in `ahead`."""
    for place in itertools.count():
        if place == len(ahead):
            ahead.append(next(rows))
        yield ahead[place]


def _first_decodable(
    candidates: Iterator[tuple[str, Mapping[str, Any]]], read: RowReader
) -> tuple[Image.Image, int, list[str]]:
    """Picture and label of the first row that can be decoded, and the names of those before it."""
    undecodable: list[str] = []
    for place, row in itertools.islice(candidates, _MAX_UNDECODABLE_IN_A_ROW):
        picture, label = read(row)
        if isinstance(picture, Image.Image):
            return picture, label, undecodable
        undecodable.append(read.name(place, row))
        error = picture
    raise ValueError(
        f"{len(undecodable)} images in a row cannot be decoded, the last of them in row {undecodable[-1]}: {error!r}."
        f" Are the files there, and is {read.column!r} the column of images?"
    )


def _sample(picture: Image.Image, label: int, undecodable: list[str], transform: Transform, key: tuple) -> Batch:
    pixel_values = transform(picture, derive_seed_32("augmentation", *key))
    noise_seed = derive_seed_32("noise", *key)
    return {"pixel_values": pixel_values, "labels": label, "noise_seed": noise_seed, "undecodable": undecodable}


def _collate(samples: list[Batch]) -> Batch:
    return {
        "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
        "labels": torch.tensor([sample["labels"] for sample in samples]),
        "noise_seed": torch.tensor([sample["noise_seed"] for sample in samples]),
        "undecodable": [row for sample in samples for row in sample["undecodable"]],
    }


def training_batches(
    data: ImageData,
    num_channels: int,
    transform: Transform,
    batch_size: int,
    seed: int,
    num_processes: int = 1,
    process_index: int = 0,
    first_batch: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """The batches of one process, without end.

    Those of a stream depend on the number of processes and workers, others only on the images and the whole batch.

    Args:
        data: The images.
        num_channels: Channels of the pictures, 1 or 3.
        transform: From a picture and a seed to normalized pixels.
        batch_size: Images per batch and process.
        seed: The run's seed.
        num_processes: Processes that train together.
        process_index: Which of them this is.
        first_batch: Batches that each process has had already.
        num_workers: Processes that decode and augment, for each training process. A stream uses at most as many as it
            has shards.
        pin_memory: Whether to prepare the copy to a GPU.

    Returns:
        Batches with `pixel_values`, `labels`, `noise_seed` (one for each image) and `undecodable` (a list of rows that
        were replaced).
    """
    arguments = (RowReader.of(data, data.train, num_channels), transform, seed)
    # With a generator of its own, a loader draws nothing from the global one.
    options: dict[str, Any] = {"collate_fn": _collate, "pin_memory": pin_memory, "generator": torch.Generator()}
    if not data.is_streamed:
        sampler = EndlessBatches(len(data.train), batch_size, seed, num_processes, process_index, first_batch)
        images = TrainingImages(data.train, *arguments)
        return iter(DataLoader(images, batch_sampler=sampler, num_workers=num_workers, **options))
    stream = data.train
    if num_processes > 1:
        stream = require("datasets.distributed").split_dataset_by_node(stream, process_index, num_processes)
    num_workers = min(num_workers, stream.num_shards)
    # Batches come from the workers in turn, beginning with the first.
    to_drop = first_batch % max(num_workers, 1)
    streamed = StreamedImages(stream, *arguments, process_index, batch_size, first_batch - to_drop)
    loader = DataLoader(streamed, batch_size=batch_size, num_workers=num_workers, **options)
    return itertools.islice(loader, to_drop, None)


class EvaluationImages(Dataset):
    """Images as the image processor makes them, by row. One that cannot be decoded has `is_valid` False.

    Args:
        rows: Undecoded rows.
        read: Reads them.
        image_processor: The model's own.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], read: RowReader, image_processor: Any):
        self.rows, self.read, self.image_processor = rows, read, image_processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Batch:
        picture, label = self.read(self.rows[row])
        pixel_values = None
        if isinstance(picture, Image.Image):
            # Very elongated pictures are refused.
            with suppress(ValueError):
                pixel_values = self._process(picture)
        is_valid = pixel_values is not None
        if pixel_values is None:
            # A placeholder, so that batches keep their size on every process.
            pixel_values = self._process(Image.new("RGB" if self.read.num_channels == 3 else "L", (64, 64)))
        return {"pixel_values": pixel_values, "labels": label, "row": row, "is_valid": is_valid}

    def _process(self, picture: Image.Image) -> torch.Tensor:
        return self.image_processor(picture, return_tensors="pt")["pixel_values"][0]


def evaluation_loader(
    data: ImageData, num_channels: int, image_processor: Any, batch_size: int, num_workers: int = 0
) -> DataLoader:
    """A loader of the validation images in their order, to be prepared by Accelerate.

    Args:
        data: The images.
        num_channels: Channels of the pictures, 1 or 3.
        image_processor: The model's own.
        batch_size: Images per batch and process.
        num_workers: Processes that decode, for each process.

    Returns:
        Batches with `pixel_values`, `labels`, `row` and `is_valid`.
    """
    read = RowReader.of(data, data.validation, num_channels)
    images = EvaluationImages(data.validation, read, image_processor)
    return DataLoader(images, batch_size=batch_size, num_workers=num_workers)


def first_images(images: EvaluationImages, num: int = 8) -> torch.Tensor:
    """The first validation images as a batch, to be looked at."""
    return torch.stack([images[row]["pixel_values"] for row in range(min(num, len(images)))])
