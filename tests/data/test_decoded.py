# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Pictures that are decoded once: the same batches, from memory that workers share."""

import io
from multiprocessing.reduction import ForkingPickler

import datasets
import numpy as np
import pytest
import torch
from conftest import random_picture, tiny_config
from PIL import Image

from transformers_nim.data.augmentation import finetuning_transform
from transformers_nim.data.decoded import DecodedImages
from transformers_nim.data.images import TrainingImages, training_batches
from transformers_nim.data.loading import ImageData, RowReader


NUM_IMAGES, BROKEN = 20, 7


def encoded(seed: int, kind: str) -> bytes:
    """Pictures of many sizes and modes."""
    file = io.BytesIO()
    random_picture(seed, (20 + seed, 33)).convert({"JPEG": "RGB", "PNG": ("L", "P", "RGBA")[seed % 3]}[kind]).save(
        file, kind
    )
    return file.getvalue()


@pytest.fixture(scope="module")
def data() -> ImageData:
    cells = [encoded(seed, "JPEG" if seed % 2 else "PNG") for seed in range(NUM_IMAGES)]
    cells[BROKEN] = cells[BROKEN][:100]
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(num_classes=NUM_IMAGES)}
    )
    rows = datasets.Dataset.from_dict({"image": cells, "label": list(range(NUM_IMAGES))}, features=features)
    names = [str(number) for number in range(NUM_IMAGES)]
    return ImageData("blocks", rows, None, "image", "label", names)


@pytest.mark.parametrize(("num_channels", "num_workers"), [(3, 0), (3, 2), (1, 0)])
def test_batches_are_the_same_bits(data, num_channels, num_workers):
    config = tiny_config(num_channels=num_channels, image_mean=[0.5] * num_channels, image_std=[0.2] * num_channels)
    transform = finetuning_transform(config, auto_augment=None if num_channels == 1 else "rand-m9-mstd0.5-inc1")
    streams = [
        training_batches(data, num_channels, transform, 6, 3, num_workers=num_workers, max_decoded_bytes=limit)
        for limit in (0, 1e6)
    ]
    reported = set()
    # Two epochs, with the broken picture in both.
    for _ in range(7):
        one, other = next(streams[0]), next(streams[1])
        assert one.keys() == other.keys()
        names = other.pop("undecodable")
        assert one.pop("undecodable") == names
        assert all(torch.equal(one[name], other[name]) for name in one)
        reported.update(names)
    assert reported == {str(BROKEN)}


def test_each_picture_is_decoded_once(data, monkeypatch):
    reader = data.reader(data.train, 3)
    images = TrainingImages(data.train, reader, lambda picture, seed: torch.zeros(1), 0)
    images.decoded = DecodedImages.read(data.train, reader, 1e6)
    monkeypatch.setattr(RowReader, "__call__", lambda *args: pytest.fail("decoded again"))
    for epoch in range(2):
        for row in set(range(NUM_IMAGES)) - {BROKEN}:
            assert images[epoch, row]["labels"] == row


def test_pictures_that_need_more_memory_are_left(data):
    reader = data.reader(data.train, 3)
    decoded = DecodedImages.read(data.train, reader, 1e6)
    total = len(decoded.pixels)
    assert total == sum(3 * (20 + seed) * 33 for seed in range(NUM_IMAGES) if seed != BROKEN)
    assert DecodedImages.read(data.train, reader, total) is not None
    assert DecodedImages.read(data.train, reader, total - 1) is None
    picture, label = decoded[4]
    expected, _ = reader(data.train[4])
    assert label == 4
    assert np.array_equal(np.asarray(picture), np.asarray(expected))
    assert decoded[BROKEN] is None


def test_a_sample_tells_that_they_will_not_fit(monkeypatch):
    """Before a large data set is decoded for nothing, or fetched one by one."""
    seen = []
    monkeypatch.setattr(RowReader, "__call__", lambda self, row: (seen.append(row), (Image.new("L", (10, 10)), 0))[1])
    rows, reader = [{"image": None}] * 10_000, RowReader("image", 1)
    assert DecodedImages.read(rows, reader, 99 * 10_000) is None
    assert len(seen) < 70
    assert len(DecodedImages.read(rows[:1000], reader, 100 * 1000).labels) == 1000
    assert DecodedImages.read([{"image": "https://pictures/1.png"}] * 10, reader, 1e9) is None


def test_workers_that_are_not_forked_share_the_memory(data):
    decoded = DecodedImages.read(data.train, data.reader(data.train, 3), 1e6)
    before = decoded.pixels.clone()
    assert not decoded.pixels.is_shared()
    ForkingPickler.dumps(decoded)
    assert decoded.pixels.is_shared()
    assert torch.equal(decoded.pixels, before)


def test_no_picture_can_be_decoded(data):
    rows = [{"image": b"", "label": 0}] * 3
    decoded = DecodedImages.read(rows, RowReader("image", 3), 1e6)
    assert [decoded[row] for row in range(3)] == [None] * 3
