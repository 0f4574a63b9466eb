# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Make endless batches of augmented images that can start at any batch, and batches to evaluate on.

A sample depends on the run's seed, the epoch and the image alone. So a resumed run sees the same samples as an
uninterrupted one, and a step has the same images whatever the number of processes.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from ..utils.extras import require
from ..utils.interruption import outlive_signals
from ..utils.seeding import derive_seed_32
from .augmentation import Transform
from .decoded import DecodedImages
from .draws import Draw
from .loading import ImageData, RowReader


Batch = dict[str, Any]

# More undecodable images in a row mean that the folder has gone or the column holds no images.
_MAX_UNDECODABLE_IN_A_ROW = 50


@dataclass(eq=False)
class TrainingImages(Dataset):
    """Augmented images by `(epoch, row)`. A picture that cannot be decoded is replaced by the next one that can.

    Attributes:
        rows: Undecoded rows.
        read: Reader of the rows.
        transform: Function from a picture and a seed to normalized pixels.
        seed: The run's seed.
        draw: Function from an image's shape and generator to further random numbers by name; None for none.
        decoded: The rows' pictures, if they are in memory.
    """

    rows: Sequence[Mapping[str, Any]]
    read: RowReader
    transform: Transform
    seed: int
    draw: Draw | None = None
    decoded: DecodedImages | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, row = key
        known = self.decoded[row] if self.decoded is not None else None
        if known is not None:
            return _sample(*known, [], self.transform, (self.seed, epoch, row), self.draw)
        candidates = ((row + step) % len(self.rows) for step in itertools.count())
        picture, label, undecodable = _first_decodable(((str(i), self.rows[i]) for i in candidates), self.read)
        return _sample(picture, label, undecodable, self.transform, (self.seed, epoch, row), self.draw)


class EndlessBatches(Sampler[list[tuple[int, int]]]):
    """Endless batches of `(epoch, row)` for one process. Each epoch has its own order; a batch may span two epochs.

    Args:
        num_rows: Number of images.
        batch_size: Images per batch and process.
        seed: The run's seed.
        num_processes: Number of processes that share the images.
        process_index: Index of this process.
        first_batch: Number of batches that each process has already seen.
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
            # Two epochs at most, because a batch can span the end of one.
            self.orders = {k: v for k, v in self.orders.items() if k == epoch - 1}
            self.orders[epoch] = torch.randperm(self.num_rows, generator=generator)
        return epoch, int(self.orders[epoch][place])


@dataclass(eq=False)
class StreamedImages(IterableDataset):
    """Augmented images of a `datasets.IterableDataset`, epoch after epoch without end.

    The n-th sample is the n-th row, or the next one that can be decoded. So a run resumes at any sample by skipping as
    many rows, without decoding them.

    Attributes:
        stream: Undecoded rows of one process.
        read, transform, seed: As for [`TrainingImages`].
        stream_index: Index of the process, which gives it other draws than the others.
        batch_size: Images per batch.
        first_batch: Number of batches already seen, a multiple of the number of DataLoader workers.
        draw: As for [`TrainingImages`].
    """

    stream: Any
    read: RowReader
    transform: Transform
    seed: int
    stream_index: int
    batch_size: int
    first_batch: int = 0
    draw: Draw | None = None

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
            yield _sample(picture, label, undecodable, self.transform, key, self.draw)

    def _rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        worker = get_worker_info()
        prefix = f"{self.stream_index}.{worker.id if worker is not None else 0}"
        # A copy, because `datasets` shares the epoch's number among workers, which change it at different times.
        stream = self.stream.with_format(None)
        is_empty = True
        for epoch in itertools.count():
            stream.set_epoch(epoch)
            for number, row in enumerate(stream):
                # A row has no other name than its place in the shuffled stream.
                yield f"{prefix}.{epoch}.{number}", row
                is_empty = False
            if is_empty:
                raise ValueError(
                    "the stream holds no images for this process or worker; check the split, or use fewer of them"
                )


def _peek(ahead: deque, rows: Iterator) -> Iterator:
    """Yield the rows in `ahead`, then those of `rows`, and keep all of them in `ahead`."""
    for place in itertools.count():
        if place == len(ahead):
            ahead.append(next(rows))
        yield ahead[place]


def _first_decodable(
    candidates: Iterator[tuple[str, Mapping[str, Any]]], read: RowReader
) -> tuple[Image.Image, int, list[str]]:
    """Return picture and label of the first row that can be decoded, and the names of the rows before it."""
    undecodable: list[str] = []
    for place, row in itertools.islice(candidates, _MAX_UNDECODABLE_IN_A_ROW):
        picture, label = read(row)
        if isinstance(picture, Image.Image):
            return picture, label, undecodable
        undecodable.append(read.name(place, row))
        error = picture
    raise ValueError(
        f"{len(undecodable)} images in a row cannot be decoded, the last of them in row {undecodable[-1]}: {error!r}."
        f" Are the files there, and is {read.image_column!r} the column of images?"
    )


def _sample(
    picture: Image.Image, label: int, undecodable: list[str], transform: Transform, key: tuple, draw: Draw | None
) -> Batch:
    pixel_values = transform(picture, derive_seed_32("augmentation", *key))
    noise_seed = derive_seed_32("noise", *key)
    sample = {
        "pixel_values": pixel_values,
        "labels": torch.tensor(label),
        "noise_seed": torch.tensor(noise_seed),
        "undecodable": undecodable,
    }
    if draw is not None:
        sample |= draw(pixel_values.shape, torch.Generator().manual_seed(noise_seed))
    return sample


def _collate(samples: list[Batch]) -> Batch:
    batch: Batch = {"undecodable": [row for sample in samples for row in sample.pop("undecodable")]}
    return batch | {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


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
    draw: Draw | None = None,
    max_decoded_bytes: float = 0.0,
) -> Iterator[Batch]:
    """Return the endless batches of one process.

    Batches of a stream depend on the number of processes and workers. All others depend only on the images and on the
    batch size over all processes.

    Args:
        data: Images to train on.
        num_channels: Channels of the pictures, 1 or 3.
        transform: Function from a picture and a seed to normalized pixels.
        batch_size: Images per batch and process.
        seed: The run's seed.
        num_processes: Number of processes that train together.
        process_index: Index of this process.
        first_batch: Number of batches that each process has already seen.
        num_workers: Number of workers that decode and augment, per process; for a stream at most its number of shards.
        pin_memory: Whether to pin memory for the copy to a GPU.
        draw: Function from an image's shape and generator to further random numbers by name, such as a [`NoiseDraw`];
            None for none.
        max_decoded_bytes: Memory for decoded pictures. Those that need no more are decoded once, now; others, and a
            stream, in each epoch. The batches are the same.

    Returns:
        Batches with `pixel_values` of shape `(batch, channels, height, width)`, `labels` and `noise_seed` of shape
        `(batch,)`, what `draw` drew, and `undecodable`, a list of the rows that were replaced.
    """
    arguments = (data.reader(data.train, num_channels), transform, seed)
    # A loader without its own generator would draw from the global one.
    options: dict[str, Any] = {"collate_fn": _collate, "pin_memory": pin_memory, "generator": torch.Generator()}
    options["worker_init_fn"] = outlive_signals
    if not data.is_streamed:
        sampler = EndlessBatches(len(data.train), batch_size, seed, num_processes, process_index, first_batch)
        decoded = None
        if max_decoded_bytes:
            decoded = DecodedImages.read(data.train, arguments[0], max_decoded_bytes, show_progress=process_index == 0)
        images = TrainingImages(data.train, *arguments, draw, decoded)
        return iter(DataLoader(images, batch_sampler=sampler, num_workers=num_workers, **options))
    stream = data.train
    if num_processes > 1:
        stream = require("datasets.distributed").split_dataset_by_node(stream, process_index, num_processes)
    num_workers = min(num_workers, stream.num_shards)
    # Workers give batches in turn, the first one first.
    to_drop = first_batch % max(num_workers, 1)
    streamed = StreamedImages(stream, *arguments, process_index, batch_size, first_batch - to_drop, draw)
    loader = DataLoader(streamed, batch_size=batch_size, num_workers=num_workers, **options)
    return itertools.islice(loader, to_drop, None)


@dataclass(eq=False)
class EvaluationImages(Dataset):
    """Images from the model's image processor, by row. One that cannot be decoded has `is_valid` False.

    Attributes:
        rows: Undecoded rows.
        read: Reader of the rows.
        image_processor: The model's image processor.
    """

    rows: Sequence[Mapping[str, Any]]
    read: RowReader
    image_processor: Any

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Batch:
        picture, label = self.read(self.rows[row])
        pixel_values = None
        if isinstance(picture, Image.Image):
            # Image processors refuse very elongated pictures.
            with suppress(ValueError):
                pixel_values = self._process(picture)
        is_valid = pixel_values is not None
        if pixel_values is None:
            # A placeholder keeps the batches of all processes equally large.
            pixel_values = self._process(Image.new("RGB" if self.read.num_channels == 3 else "L", (64, 64)))
        return {"pixel_values": pixel_values, "labels": label, "row": row, "is_valid": is_valid}

    def _process(self, picture: Image.Image) -> torch.Tensor:
        return self.image_processor(picture, return_tensors="pt")["pixel_values"][0]


def evaluation_loader(
    data: ImageData, num_channels: int, image_processor: Any, batch_size: int, num_workers: int = 0
) -> DataLoader:
    """Return a loader of the validation images in their order; prepare it with Accelerate.

    Args:
        data: Images, of which those to validate with are read.
        num_channels: Channels of the pictures, 1 or 3.
        image_processor: The model's image processor.
        batch_size: Images per batch and process.
        num_workers: Number of workers that decode, per process.

    Returns:
        Batches with `pixel_values` of shape `(batch, channels, height, width)`, and `labels`, `row` and `is_valid` of
        shape `(batch,)`.
    """
    images = EvaluationImages(data.validation, data.reader(data.validation, num_channels), image_processor)
    return DataLoader(images, batch_size=batch_size, num_workers=num_workers, worker_init_fn=outlive_signals)


def first_images(images: EvaluationImages, num: int = 8) -> torch.Tensor:
    """Return the first images as a batch of shape `(num, channels, height, width)`, to be plotted."""
    return torch.stack([images[row]["pixel_values"] for row in range(min(num, len(images)))])
