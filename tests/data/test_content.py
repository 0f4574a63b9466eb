# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The same images are known at any place and in any container of files; others are told from them."""

import io
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from transformers_nim.data import content
from transformers_nim.data.content import content_hash
from transformers_nim.data.loading import ImageSource


LABELS = [0, 1] * 6


def bmp(seed: int) -> bytes:
    """A picture whose file is as large as all others."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(file, "BMP")
    return file.getvalue()


def split_of(seeds, labels=LABELS) -> datasets.Dataset:
    rows = {"image": [{"bytes": bmp(seed), "path": f"{seed}.bmp"} for seed in seeds], "label": labels}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    return datasets.Dataset.from_dict(rows, features=features)


def write_folder(folder, seeds, labels) -> dict:
    for number, (seed, label) in enumerate(zip(seeds, labels)):
        path = folder / "ab"[label] / f"{number:03d}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bmp(seed))
    return {"train_dir": str(folder)}


def write_parquet(folder, seeds, labels) -> dict:
    folder.mkdir()
    split_of(seeds, labels).to_parquet(folder / "train-00000-of-00001.parquet")
    return {"dataset_name": str(folder)}


def write_to_disk(folder, seeds, labels) -> dict:
    datasets.DatasetDict({"train": split_of(seeds, labels)}).save_to_disk(folder)
    return {"dataset_name": str(folder)}


@pytest.fixture
def hash_of(tmp_path):
    def of(write, name, seeds=range(12), labels=LABELS, with_labels=True, **options):
        source = ImageSource(**write(tmp_path / name, seeds, labels), cache_dir=str(tmp_path / "cache"), **options)
        return content_hash(source.load(with_labels))

    return of


WAYS = [(write_folder, {}), (write_parquet, {}), (write_to_disk, {})]
WAYS += [(write_folder, {"streaming": True}), (write_parquet, {"streaming": True})]


@pytest.mark.parametrize(("write", "options"), WAYS)
def test_the_place_does_not_matter_and_each_picture_and_label_does(hash_of, write, options):
    known = hash_of(write, "one", **options)
    assert hash_of(write, "elsewhere", **options) == known
    for changed in (0, 11):
        seeds = [100 if number == changed else number for number in range(12)]
        # One of the pictures, validation or training, in a file of the same name and size.
        assert hash_of(write, f"changed {changed}", seeds, **options) != known
    labels = [1, 0, *LABELS[2:]]
    assert hash_of(write, "other labels", labels=labels, **options) != known
    assert hash_of(write, "fewer", range(11), LABELS[:11], **options) != known
    if write is not write_folder:
        # Its classes make the order.
        unlabelled = hash_of(write, "no labels", with_labels=False, **options)
        assert unlabelled != known
        assert hash_of(write, "neither", labels=labels, with_labels=False, **options) == unlabelled


def test_the_choice_of_images_counts(hash_of):
    found = {
        hash_of(write_parquet, "one"),
        hash_of(write_parquet, "two", train_val_split=0.3),
        hash_of(write_parquet, "three", max_train_samples=5),
        hash_of(write_parquet, "four", max_train_samples=5, seed=1),
        hash_of(write_parquet, "five", max_eval_samples=1, train_val_split=0.3),
    }
    assert len(found) == 5


@pytest.mark.parametrize("write", [write_folder, write_parquet])
def test_of_many_pictures_sizes_and_some_are_read(hash_of, write, monkeypatch, tmp_path):
    monkeypatch.setattr(content, "_SMALL", 500)
    monkeypatch.setattr(content, "_NUM_READ", 4)
    known = hash_of(write, "one", train_val_split=0)
    chosen = np.random.default_rng(0).permutation(12)[:4]
    # Of folders, the pictures come class by class.
    order = [*range(0, 12, 2), *range(1, 12, 2)] if write is write_folder else range(12)
    contents = [bmp(order[place]) for place in chosen]
    others = [[100 if n == changed else n for n in range(12)] for changed in range(4)]
    same = [hash_of(write, f"c{n}", seeds, train_val_split=0) == known for n, seeds in enumerate(others)]
    assert same == [bmp(n) not in contents for n in range(4)]

    # Of any other the size is seen.
    def longer(folder, seeds, labels):
        source = write_folder(folder, seeds, labels)
        with open(folder / "a" / "000.bmp", "ab") as file:
            file.write(b"\0")
        return source

    if write is write_folder:
        assert same[0]
        assert hash_of(longer, "longer", train_val_split=0) != known
        shutil.rmtree(tmp_path / "longer")


def test_of_very_many_files_no_size_is_asked_for(hash_of, monkeypatch):
    """Only the chosen ones are looked at; number and labels count still."""
    monkeypatch.setattr(content, "_NUM_READ", 4)
    monkeypatch.setattr(content, "_MAX_FILES", 11)
    monkeypatch.setattr(content, "_file_size", None)
    known = hash_of(write_folder, "one", train_val_split=0)
    chosen = np.random.default_rng(0).permutation(12)[:4]
    # The pictures come class by class.
    order = [*range(0, 12, 2), *range(1, 12, 2)]
    read = {order[place] for place in chosen}
    others = [[100 if n == changed else n for n in range(12)] for changed in range(4)]
    same = [hash_of(write_folder, f"c{n}", seeds, train_val_split=0) == known for n, seeds in enumerate(others)]
    assert same == [n not in read for n in range(4)]
    assert not all(same)
    assert any(same)
    assert hash_of(write_folder, "fewer", range(12), [0] * 5 + [1] * 7, train_val_split=0) != known


def test_rows_that_are_no_files(monkeypatch):
    rows = {"image": [[[0, 1], [2, n]] for n in range(3)], "label": [0, 1, 1]}
    data = [datasets.Dataset.from_dict({**rows, "image": images}) for images in (rows["image"], [[[9]]] * 3)]
    found = {content_hash(content.ImageData("x", one, None, "image", "label")) for one in [data[0], *data]}
    assert len(found) == 2
