# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Folders of pictures as people have them: with splits, nested, untidy, or too little of everything."""

import argparse

import datasets
import pytest
from PIL import Image

from transformers_nim.data import picture_folders
from transformers_nim.data.evaluation_set import add_split_arguments, load_split
from transformers_nim.data.loading import ImageSource, decode_picture
from transformers_nim.data.picture_folders import check_classes, is_folder_of_pictures, picture_splits


@pytest.fixture(autouse=True)
def _no_counts(monkeypatch):
    # `datasets` counts over the net how often its readers of local files are used.
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)


@pytest.fixture
def pets(tmp_path):
    """Writes files below a folder: pictures of a grey each, or what has another ending than .png empty."""

    def write(*paths: str):
        for number, path in enumerate(paths):
            file = tmp_path / "pets" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".png":
                Image.new("L", (8, 8), number).save(file)
            elif file.suffix:
                file.touch()
            else:
                file.mkdir()
        return tmp_path / "pets"

    return write


TWO = ("cat/0.png", "dog/1.png")
SPLITS = [f"{split}/{path}" for split in ("train", "val", "test") for path in TWO]


def greys(data, rows) -> set[tuple[str, int]]:
    label_of = data.reader(rows, 1).label
    return {(data.label_names[label_of(row)], decode_picture(row["image"], 1).getpixel((0, 0))) for row in rows}


@pytest.mark.parametrize("by", ["train_dir", "dataset_name"])
def test_splits_are_read_as_splits(by, pets, tmp_path):
    folder = pets(*SPLITS)
    source = {by: str(folder), "cache_dir": str(tmp_path / "cache")}
    data = ImageSource(**source).load(with_labels=True)
    assert data.label_names == ["cat", "dog"]
    assert greys(data, data.train) == {("cat", 0), ("dog", 1)}
    assert greys(data, data.validation) == {("cat", 2), ("dog", 3)}
    named = ImageSource(**source, validation_split_name="test").load(with_labels=True)
    assert greys(named, named.validation) == {("cat", 4), ("dog", 5)}


def test_a_validation_folder_comes_before_that_of_a_split(pets, tmp_path):
    folder = pets(*SPLITS)
    source = {"train_dir": str(folder), "validation_dir": str(folder / "test"), "cache_dir": str(tmp_path / "cache")}
    data = ImageSource(**source).load(with_labels=True)
    assert greys(data, data.validation) == {("cat", 4), ("dog", 5)}


@pytest.mark.parametrize(("paths", "split"), [(TWO, "train"), (SPLITS, "test")])
def test_the_split_of_an_evaluation(paths, split, pets, tmp_path):
    """A folder of classes alone is evaluated as a whole; of splits, the test split."""
    parser = argparse.ArgumentParser()
    add_split_arguments(parser)
    args = parser.parse_args(["--dataset_name", str(pets(*paths)), "--cache_dir", str(tmp_path / "cache")])
    data = load_split(args)
    assert args.split == split
    assert {name for name, _ in greys(data, data.train)} == {"cat", "dog"}
    assert max(grey for _, grey in greys(data, data.train)) == len(paths) - 1


def test_a_class_that_sounds_like_a_split_is_one(pets, tmp_path):
    """By name alone, `datasets` would take the tubes for a test split, and train on nothing else."""
    folder = pets("cat/0.png", "test-tube/1.png")
    data = ImageSource(str(folder), train_val_split=0, cache_dir=str(tmp_path / "cache")).load(with_labels=True)
    assert greys(data, data.train) == {("cat", 0), ("test-tube", 1)}


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (SPLITS, ["train", "validation", "test"]),
        (["Training/cat/0.png", "valid/cat/0.png"], ["train", "validation"]),
        (TWO, None),
        (["train/0.png", "bus/0.png"], None),
        (["val/cat/0.png", "test/cat/0.png"], ["validation", "test"]),
        (["train/cat/0.png", "train/dog/0.png"], ["train"]),
        (["val/0.png", "test/1.png"], None),
    ],
)
def test_splits_are_found(paths, expected, pets):
    found = picture_splits(pets(*paths))
    assert (list(found) if found else None) == expected


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([*SPLITS, "valid/cat/0.png"], "two folders for one split, val and valid; leave one"),
        (
            [*SPLITS, "more/cat/0.png"],
            r"holds splits \(train, val, test\) and other folders \(more\), which would mix",
        ),
    ],
)
def test_splits_that_are_not_clear(paths, message, pets):
    with pytest.raises(ValueError, match=message):
        picture_splits(pets(*paths))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a/cat/0.png", "b/cat/0.png"], r"directly in it, and a/cat, b/cat lie deeper"),
        ([*TWO, "cat/indoor/2.png"], r"and cat/indoor lies deeper. Move them up"),
        ([*TWO, "2.png"], r"1 picture \(2\.png\) lies there beside the folders of classes"),
        (["cat/0.png"], "a classifier needs two classes or more: there is only cat"),
        (["notes.txt"], "a classifier needs two classes or more: there is no folder"),
        ([*TWO, "cow"], "cow has no picture that can be read. Fill or remove it"),
        ([*TWO, "cow/a.heic", "cow/b.heic"], r"cow has no picture that can be read \(only 2 files .heic\)"),
    ],
)
def test_classes_that_are_not_clear(paths, message, pets):
    folder = pets(*paths)
    with pytest.raises(ValueError, match=message):
        check_classes(folder)
    with pytest.raises(ValueError, match=message):
        ImageSource(train_dir=str(folder)).load(with_labels=True)


def test_untidy_folders_are_read_and_it_is_said(pets, monkeypatch):
    said = []
    monkeypatch.setattr(picture_folders.logger, "warning", said.append)
    check_classes(pets(*TWO, "cat/c.heic", "cat/.hidden.txt", ".git/x.png", "dog/notes.txt", "dog/d.heic"))
    assert ["2 files .heic, 1 file .txt" in text for text in said] == [True]
    check_classes(pets("cow"), is_whole=False)


@pytest.mark.parametrize(
    "table", ["pets.parquet", "train/metadata.csv", "train/cat/metadata.jsonl", "a.zip", "README.md"]
)
def test_what_describes_itself_is_left_to_datasets(table, pets):
    assert is_folder_of_pictures(pets(*SPLITS))
    assert not is_folder_of_pictures(pets(table))


def test_a_folder_without_pictures(pets):
    assert not is_folder_of_pictures(pets("cat/a.txt"))
