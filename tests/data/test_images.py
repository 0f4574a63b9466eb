# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Streams of batches, entered at any place, shared in any way, and with broken pictures in them."""

import functools
import gc
import io
import itertools
import pickle
import random
import re
from collections import Counter
from collections.abc import Iterator

import datasets
import fsspec
import numpy as np
import pytest
import torch
from conftest import random_picture, tiny_config
from PIL import Image
from sklearn.datasets import load_digits

from transformers_nim import NIMImageProcessor
from transformers_nim.data.augmentation import finetuning_transform, pretraining_transform
from transformers_nim.data.images import (
    Batch,
    EndlessBatches,
    EvaluationImages,
    StreamedImages,
    TrainingImages,
    evaluation_loader,
    first_images,
    training_batches,
)
from transformers_nim.data.loading import ImageData, RowReader, UnknownLabelError


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@functools.cache
def digit_files() -> list[bytes]:
    images = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    # Larger than the model's 8x8, so that no two crops are alike.
    return [png(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in images[:60]]


def table(cells: list, labels: list[int] | None = None) -> datasets.Dataset:
    """Rows whose label is their number."""
    features = {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(num_classes=100)}
    cells = [cell if isinstance(cell, dict) else {"bytes": cell, "path": None} for cell in cells]
    columns = {"image": cells, "label": labels or list(range(len(cells)))}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def image_data(rows, validation=None) -> ImageData:
    return ImageData("digits", rows, validation, "image", "label", [str(i) for i in range(100)])


@functools.cache
def digits(num: int = 10) -> ImageData:
    return image_data(table(digit_files()[:num]))


def streamed_digits(num: int = 10, num_shards: int = 3, seed: int = 0) -> ImageData:
    stream = table(digit_files()[:num]).to_iterable_dataset(num_shards=num_shards)
    return image_data(stream.shuffle(seed=seed, buffer_size=4, max_buffer_input_shards=1))


CROP = pretraining_transform(tiny_config(image_size=8, num_channels=1))


def batches(data: ImageData, batch_size: int = 4, seed: int = 0, *args, transform=CROP, **kwargs) -> Iterator[Batch]:
    return training_batches(data, 1, transform, batch_size, seed, *args, **kwargs)


def take(stream: Iterator[Batch], num: int) -> list[Batch]:
    return list(itertools.islice(stream, num))


def assert_same(actual: list[Batch], expected: list[Batch]) -> None:
    assert len(actual) == len(expected)
    for number, (one, other) in enumerate(zip(actual, expected)):
        assert one.keys() == other.keys() == {"pixel_values", "labels", "noise_seed", "undecodable"}
        for name in ("pixel_values", "labels", "noise_seed"):
            assert torch.equal(one[name], other[name]), (number, name)
        assert one["undecodable"] == other["undecodable"], number


def error_of(stream: Iterator[Batch]) -> str:
    """Type and text of the error that ends a stream of batches.

    An error from a worker keeps the loader until the garbage collector comes, when it waits for its workers in vain.
    """
    try:
        for batch in itertools.islice(stream, 100):
            assert batch["labels"].numel()
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    yield
    gc.collect()


def labels_of(found: list[Batch]) -> list[int]:
    return [label for batch in found for label in batch["labels"].tolist()]


# One process, images by number.


def test_what_a_batch_holds():
    data = digits(20)
    (batch,) = take(batches(data, 6), 1)
    assert batch["pixel_values"].shape == (6, 1, 8, 8)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].dtype == batch["noise_seed"].dtype == torch.int64
    assert batch["undecodable"] == []
    # Labels belong to their pictures: without augmentation, pixels tell which digit it is.
    whole = pretraining_transform(tiny_config(image_size=8, num_channels=1), (1.0, 1.0), 0)
    (batch,) = take(batches(data, 20, transform=whole), 1)
    assert sorted(batch["labels"].tolist()) == list(range(20))
    for pixels, label in zip(batch["pixel_values"], batch["labels"].tolist()):
        assert torch.equal(pixels, whole(Image.open(io.BytesIO(digit_files()[label])), 0))


@pytest.mark.parametrize(("num", "batch_size"), [(10, 4), (8, 4), (3, 8), (1, 2), (5, 1)])
def test_every_epoch_holds_every_image_once(num, batch_size):
    labels = labels_of(take(batches(digits(num), batch_size), 6 * num))
    epochs = [labels[start : start + num] for start in range(0, len(labels) - num + 1, num)]
    assert len(epochs) >= 6
    assert all(sorted(epoch) == list(range(num)) for epoch in epochs)
    if num > 3:
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_orders_are_random():
    """Every image comes first about equally often."""
    drawn = Counter(next(iter(EndlessBatches(4, 4, seed)))[0] for seed in range(200))
    assert sorted(drawn) == [(0, row) for row in range(4)]
    assert 25 < min(drawn.values()) <= max(drawn.values()) < 75  # 4 standard deviations around 50


def test_seeds_change_everything():
    one, other = (take(batches(digits(), 10, seed), 1)[0] for seed in (0, 1))
    assert one["labels"].tolist() != other["labels"].tolist()
    order, other_order = one["labels"].argsort(), other["labels"].argsort()
    assert not any(map(torch.equal, one["pixel_values"][order], other["pixel_values"][other_order]))
    assert not set(one["noise_seed"].tolist()) & set(other["noise_seed"].tolist())


def test_every_epoch_augments_anew():
    found = take(batches(digits(), 10), 20)
    seeds = torch.cat([batch["noise_seed"] for batch in found])
    assert len(seeds.unique()) == 200
    assert 0 <= seeds.min() < 2**28
    assert 2**32 - 2**28 < seeds.max() < 2**32
    for label in range(10):
        seen = {batch["pixel_values"][batch["labels"] == label].numpy().tobytes() for batch in found}
        assert len(seen) == 20


def test_crops_and_noise_are_drawn_apart():
    """An image's augmentation tells nothing of its noise."""
    seen: list[int] = []

    def transform(picture: Image.Image, seed: int) -> torch.Tensor:
        seen.append(seed)
        return torch.zeros(1, 8, 8)

    found = take(batches(digits(), 10, transform=transform), 3)
    assert len(set(seen)) == 30
    assert not set(seen) & {seed for batch in found for seed in batch["noise_seed"].tolist()}


# Of 10 images in batches of 4: batch 2 lies across the end of the first epoch, batch 5 begins the third one.
ENTRIES = (2, 5, 7)


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_entered_at_any_batch(num_workers):
    uninterrupted = take(batches(digits()), 16)
    for entry in ENTRIES:
        entered = take(batches(digits(), first_batch=entry, num_workers=num_workers), 4)
        assert_same(entered, uninterrupted[entry : entry + 4])


@pytest.mark.parametrize("num", [1, 3, 7])
def test_entered_where_a_batch_is_more_than_an_epoch(num):
    uninterrupted = take(batches(digits(num), 8), 8)
    for entry in (1, 2, 3, 6):
        assert_same(take(batches(digits(num), 8, first_batch=entry), 2), uninterrupted[entry : entry + 2])


def test_entered_far_away():
    """Without walking there."""
    data = digits(7)
    (batch,) = take(batches(data, first_batch=10**12), 1)
    (same,) = take(batches(data, 2, num_processes=2, first_batch=10**12), 1)
    assert torch.equal(batch["pixel_values"][:2], same["pixel_values"])


@pytest.mark.parametrize("make", [pretraining_transform, finetuning_transform])
def test_entered_with_all_augmentation(make):
    config = tiny_config()
    data = image_data(table([png(random_picture(i)) for i in range(5)]))
    uninterrupted = take(training_batches(data, 3, make(config), 2, 7), 8)
    for num_workers in (0, 2):
        entered = training_batches(data, 3, make(config), 2, 7, first_batch=3, num_workers=num_workers)
        assert_same(take(entered, 5), uninterrupted[3:])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("make", [digits, streamed_digits])
def test_global_generators_are_left_alone(make, num_workers):
    data, transform = make(), finetuning_transform(tiny_config(image_size=8, num_channels=1))
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    first = take(batches(data, num_workers=num_workers, transform=transform), 6)
    assert random.getstate() == states[0]
    assert str(np.random.get_state()) == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert_same(take(batches(data, num_workers=num_workers, transform=transform), 6), first)


# Several processes.


@pytest.mark.parametrize(("num", "num_processes"), [(10, 2), (10, 3), (3, 2), (11, 4)])
def test_processes_share_the_batches_of_one(num, num_processes):
    alone = take(batches(digits(num), 4 * num_processes), 7)
    for index in range(num_processes):
        part = take(batches(digits(num), 4, 0, num_processes, index), 7)
        mine = slice(4 * index, 4 * index + 4)
        for name in ("pixel_values", "labels", "noise_seed"):
            assert all(torch.equal(one[name], all_[name][mine]) for one, all_ in zip(part, alone))
        entered = batches(digits(num), 4, 0, num_processes, index, first_batch=3)
        assert_same(take(entered, 4), part[3:])


@pytest.mark.parametrize("num_shards", [1, 2, 3, 4])
def test_processes_share_a_stream(num_shards):
    """By shards if their number allows it, by rows if not."""
    parts = [labels_of(take(batches(streamed_digits(12, num_shards), 1, 0, 2, index), 24)) for index in range(2)]
    for part in parts:
        # Four epochs of as many images.
        assert all(len(set(part[start : start + 6])) == 6 for start in range(0, 24, 6))
    if num_shards != 1:
        # Shards are dealt out anew in every epoch, so the parts change.
        assert len({frozenset(parts[0][start : start + 6]) for start in range(0, 24, 6)}) > 1
    for start in range(0, 24, 6):
        assert sorted(parts[0][start : start + 6] + parts[1][start : start + 6]) == list(range(12))


def test_processes_of_a_stream_augment_apart():
    same = [{"image": {"bytes": digit_files()[0], "path": None}, "label": i} for i in range(4)]
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(num_classes=100)}
    )
    data = image_data(datasets.Dataset.from_list(same, features=features).to_iterable_dataset(num_shards=2))
    seeds, pixels = set(), set()
    for index, num_workers in ((0, 0), (1, 1)):
        for batch in take(batches(data, 2, 0, 2, index, num_workers=num_workers), 3):
            seeds |= set(batch["noise_seed"].tolist())
            pixels |= {image.numpy().tobytes() for image in batch["pixel_values"]}
    assert len(seeds) == len(pixels) == 12


# Streams.


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_streams_are_entered_at_any_batch(num_workers):
    uninterrupted = take(batches(streamed_digits(), num_workers=num_workers), 16)
    for entry in ENTRIES:
        entered = take(batches(streamed_digits(), num_workers=num_workers, first_batch=entry), 4)
        assert_same(entered, uninterrupted[entry : entry + 4])


def test_streams_shorter_than_a_batch_are_entered():
    uninterrupted = take(batches(streamed_digits(3), 8), 6)
    assert sorted(labels_of(uninterrupted)) == sorted([*range(3)] * 16)
    for entry in range(1, 4):
        assert_same(take(batches(streamed_digits(3), 8, first_batch=entry), 2), uninterrupted[entry : entry + 2])


def test_parts_of_a_stream_are_entered():
    for index, num_workers in ((0, 0), (1, 0), (1, 2)):
        uninterrupted = take(batches(streamed_digits(12, 4), 3, 0, 2, index, num_workers=num_workers), 8)
        entered = batches(streamed_digits(12, 4), 3, 0, 2, index, first_batch=5, num_workers=num_workers)
        assert_same(take(entered, 3), uninterrupted[5:])


def test_every_epoch_of_a_stream_holds_every_image_once():
    data = streamed_digits(12, 3)
    labels = labels_of(take(batches(data), 15))
    epochs = [labels[start : start + 12] for start in range(0, 60, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    # Workers divide the shards, of four images each, and batches come from them in turn.
    labels = labels_of(take(batches(data, num_workers=3), 15))
    epochs = [labels[start : start + 12] for start in range(0, 60, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_streams_augment_anew():
    for num_workers in (2, 0):
        found = take(batches(streamed_digits(), 10, num_workers=num_workers), 20)
        assert len(torch.cat([batch["noise_seed"] for batch in found]).unique()) == 200
    seen = {batch["pixel_values"][batch["labels"] == 3].numpy().tobytes() for batch in found}
    assert len(seen) == 20


def test_more_workers_than_shards():
    assert_same(
        take(batches(streamed_digits(10, 2), num_workers=5, first_batch=3), 4),
        take(batches(streamed_digits(10, 2), num_workers=2, first_batch=3), 4),
    )
    # Each of two processes has one of the shards.
    stream = batches(streamed_digits(10, 2), 5, 0, 2, 1, num_workers=4)
    assert len(set(labels_of(take(stream, 1)))) == 5


def test_streams_are_not_changed():
    """Workers would see each other's epoch in them."""
    data = streamed_digits()
    for num_workers in (0, 2):
        take(batches(data, num_workers=num_workers), 12)
        assert data.train.epoch == 0


class Stream:
    """As many rows in each epoch as it is told."""

    def __init__(self, *sizes: int):
        self.sizes = sizes

    def with_format(self, _: None) -> "Stream":
        return Stream(*self.sizes)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict]:
        size = self.sizes[self.epoch % len(self.sizes)]
        return iter([{"image": digit_files()[i], "label": 10 * self.epoch + i} for i in range(size)])


def test_epochs_without_images(impatient):
    """A worker whose only shard is empty can have another one next time."""
    read = RowReader("image", 1, "label", [str(i) for i in range(60)])
    images = StreamedImages(Stream(2, 0, 1), read, CROP, 0, 0, 2)
    assert [sample["labels"] for sample in itertools.islice(images, 6)] == [0, 1, 20, 30, 31, 50]
    with pytest.raises(ValueError, match="the stream holds no images for this process or worker; check the split"):
        next(iter(StreamedImages(Stream(0), read, CROP, 0, 0, 2)))
    one = table(digit_files()[:4]).to_iterable_dataset(num_shards=2).take(1)
    error = error_of(batches(image_data(one), 1, num_workers=2))
    assert "the stream holds no images for this process or worker" in error


def test_images_on_the_hub_are_opened_with_the_token(monkeypatch):
    def open_address(address: str, **options) -> io.BytesIO:
        assert options == {"hf": {"token": "hf_secret"}}
        return io.BytesIO(digit_files()[int(address[-1])])

    monkeypatch.setattr(fsspec, "open", open_address)
    rows = table([{"bytes": None, "path": f"hf://datasets/nim/digits/{i}"} for i in range(4)])
    data = ImageData("x", rows.to_iterable_dataset(), rows, "image", token="hf_secret")
    (batch,) = take(batches(data), 1)
    assert batch["undecodable"] == []
    processor = NIMImageProcessor.from_config(tiny_config(num_channels=1))
    (batch,) = evaluation_loader(data, 1, processor, 4)
    assert batch["is_valid"].all()


# Broken pictures.


def broken_cells(num: int = 10) -> list:
    cells: list = digit_files()[:num]
    cells[2], cells[3] = cells[2][:40], b""
    cells[6] = {"bytes": None, "path": "nowhere/6.png"}
    cells[9] = {"bytes": b"text", "path": "9.png"}
    return cells


def broken_image_data(streamed: bool) -> ImageData:
    rows = table(broken_cells())
    return image_data(rows.to_iterable_dataset(num_shards=2) if streamed else rows)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_pictures_are_replaced(num_workers):
    data = broken_image_data(streamed=False)
    found = take(batches(data, 5, num_workers=num_workers), 4)
    replaced = {2: 4, 3: 4, 6: 7, 9: 0}
    for epoch in (found[:2], found[2:]):
        assert sorted(labels_of(epoch)) == sorted(replaced.get(i, i) for i in range(10))
        reported = Counter(name for batch in epoch for name in batch["undecodable"])
        # Row 3 also on the way from row 2 to the next picture.
        assert reported == {"2": 1, "3": 2, "6 (nowhere/6.png)": 1, "9 (9.png)": 1}
    # A replacement is an image of its own: with a crop and noise that are not those of the original.
    epoch = torch.cat([batch["labels"] for batch in found[:2]])
    pixels = torch.cat([batch["pixel_values"] for batch in found[:2]])
    seeds = torch.cat([batch["noise_seed"] for batch in found[:2]])
    assert len(pixels[epoch == 4].unique(dim=0)) == 3
    assert len(seeds.unique()) == 10
    for entry in (1, 2, 3):
        assert_same(take(batches(data, 5, first_batch=entry, num_workers=num_workers), 1), found[entry : entry + 1])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_pictures_of_a_stream_are_replaced(num_workers):
    data = broken_image_data(streamed=True)
    found = take(batches(data, 5, num_workers=num_workers), 8)
    if num_workers == 0:
        # The shards are rows 0 to 4 and 5 to 9, in an order of their own.
        first = labels_of(found[:2])
        assert first in (
            [0, 1, 4, 4, 4, 5, 7, 7, 8, 0],
            [5, 7, 7, 8, 0, 0, 1, 4, 4, 4],
            [0, 1, 4, 4, 4, 5, 7, 7, 8, 5],
        )
        names = [name for batch in found[:2] for name in batch["undecodable"]]
        assert names[:3] == ["0.0.0.2", "0.0.0.3", "0.0.0.3"]
        assert names[3:] == ["0.0.0.6 (nowhere/6.png)", "0.0.0.9 (9.png)"]
    assert not {2, 3, 6, 9} & set(labels_of(found))
    assert all(len(batch["labels"]) == 5 for batch in found)
    for entry in (1, 2, 3, 4):
        entered = batches(data, 5, first_batch=entry, num_workers=num_workers)
        assert_same(take(entered, 3), found[entry : entry + 3])


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_broken_pictures(streamed, num_workers, impatient):
    rows = table([{"bytes": None, "path": f"nowhere/{i}.png"} for i in range(60)])
    data = image_data(rows.to_iterable_dataset() if streamed else rows)
    message = (
        r"50 images in a row cannot be decoded, the last of them in row [0-9.]+ \(nowhere/\d+.png\): FileNotFound"
    )
    assert re.search(message, error_of(batches(data, num_workers=num_workers)))
    # Anything less is overcome.
    rows = table([b""] * 49 + digit_files()[:1])
    data = image_data(rows.to_iterable_dataset() if streamed else rows)
    batch = next(batches(data, 8, num_workers=num_workers))
    assert set(batch["labels"].tolist()) == {49}


def test_columns_that_hold_no_images():
    data = ImageData("x", table(digit_files()[:3]), None, "label")
    with pytest.raises(ValueError, match=r"TypeError.*got int.*Are the files there, and is 'label' the column of"):
        next(batches(data))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_unknown_labels_end_the_run(streamed, num_workers, impatient):
    """Also that of a broken picture: it is the data set that is wrong."""
    rows = table([b""] * 3, [-1, -1, -1])
    data = image_data(rows.to_iterable_dataset() if streamed else rows)
    error = error_of(batches(data, num_workers=num_workers))
    assert error.startswith("UnknownLabelError")
    assert "label -1, which is none of the 100 classes" in error


# Validation.


@pytest.fixture(scope="module")
def processor() -> NIMImageProcessor:
    return NIMImageProcessor.from_config(tiny_config())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_images(processor, num_workers):
    pictures = [random_picture(i, (40 + i, 50)) for i in range(7)]
    cells: list = [png(picture) for picture in pictures]
    cells[1], cells[4] = cells[1][:100], png(Image.new("RGB", (1, 200_000)))
    # Batches are in the order of rows, and labels are those of training.
    validation = table(cells).cast_column("label", datasets.ClassLabel(names=[str(99 - i) for i in range(100)]))
    loader = evaluation_loader(image_data(table(cells), validation), 3, processor, 3, num_workers)
    found = list(loader)
    assert [batch["row"].tolist() for batch in found] == [[0, 1, 2], [3, 4, 5], [6]]
    assert labels_of(found) == [99 - i for i in range(7)]
    is_valid = torch.cat([batch["is_valid"] for batch in found])
    assert is_valid.dtype == torch.bool
    assert is_valid.tolist() == [True, False, True, True, False, True, True]
    pixels = torch.cat([batch["pixel_values"] for batch in found])
    for row in (0, 2, 3, 5, 6):
        assert torch.equal(pixels[row], processor(pictures[row], return_tensors="pt")["pixel_values"][0])
    assert torch.equal(pixels[1], pixels[4])
    assert torch.equal(first_images(loader.dataset, 3), pixels[:3])
    assert torch.equal(first_images(loader.dataset), pixels)


def test_grey_evaluation_images():
    config = tiny_config(num_channels=1)
    data = image_data(table([b""]), table([b"", png(random_picture(0))]))
    (batch,) = evaluation_loader(data, 1, NIMImageProcessor.from_config(config), 4)
    assert batch["pixel_values"].shape == (2, 1, 32, 32)
    assert batch["is_valid"].tolist() == [False, True]


def test_unknown_labels_end_the_evaluation(processor):
    data = image_data(table(digit_files()[:1]), table(digit_files()[:2], [3, -1]))
    with pytest.raises(UnknownLabelError, match="label -1"):
        list(evaluation_loader(data, 3, processor, 4))


@pytest.mark.parametrize("make", [pretraining_transform, finetuning_transform])
def test_images_travel_to_workers(make, processor):
    """Which need not be forks."""
    data = image_data(table([png(random_picture(i)) for i in range(3)]))
    read = data.reader(data.train, 3)
    images = TrainingImages(data.train, read, make(tiny_config()), 0)
    travelled = pickle.loads(pickle.dumps(images))
    assert torch.equal(travelled[2, 1]["pixel_values"], images[2, 1]["pixel_values"])
    evaluation = EvaluationImages(data.train, read, processor)
    travelled = pickle.loads(pickle.dumps(evaluation))
    assert torch.equal(travelled[1]["pixel_values"], evaluation[1]["pixel_values"])
    stream = image_data(data.train.to_iterable_dataset())
    images = StreamedImages(stream.train, read, make(tiny_config()), 0, 0, 2)
    travelled = pickle.loads(pickle.dumps(images))
    assert torch.equal(next(iter(travelled))["pixel_values"], next(iter(images))["pixel_values"])
