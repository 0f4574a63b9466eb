# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Images and labels from everywhere, told apart by their colors."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from transformers_nim.data import loading as data_module
from transformers_nim.data.loading import ImageData, ImageSource, UnknownLabelError, decode_picture


CLASSES = ("ant", "bee", "cat")
PER_CLASS = {"train": 5, "validation": 2, "test": 3}


def color(split: str, name: str, number: int) -> tuple[int, int, int]:
    return 20 * list(PER_CLASS).index(split) + number, 80 * CLASSES.index(name), 7


def png(pixel: tuple[int, int, int], size: tuple[int, int] = (9, 7)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, pixel).save(file, "PNG")
    return file.getvalue()


def files_of(split: str, classes: Iterable[str] = CLASSES) -> dict[str, bytes]:
    return {f"{name}/{i}.png": png(color(split, name, i)) for name in classes for i in range(PER_CLASS[split])}


def write(folder: Path, files: dict[str, bytes]) -> str:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return str(folder)


def split_of(split: str, classes: Iterable[str] = CLASSES) -> datasets.Dataset:
    rows = [
        {"image": {"bytes": png(color(split, name, i)), "path": f"{i}.png"}, "label": name}
        for name in classes
        for i in range(PER_CLASS[split])
    ]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))})
    return datasets.Dataset.from_list(rows, features=features)


def expected(split: str) -> set[tuple[str, tuple[int, int, int]]]:
    return {(name, color(split, name, i)) for name in CLASSES for i in range(PER_CLASS[split])}


def found(data: ImageData, rows: Any) -> list[tuple[str, tuple[int, int, int]]]:
    """Class name and color of every row."""
    label_of = data.reader(rows, 3).label
    return [
        (data.label_names[label_of(row)], decode_picture(row[data.image_column], 3).getpixel((3, 3))) for row in rows
    ]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads an [`ImageSource`] with caches below the test's folder."""
    # `datasets` counts over the net how often its readers of local files are used.
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)

    def load(*args, with_labels=False, **kwargs) -> ImageData:
        return ImageSource(*args, **{"cache_dir": str(tmp_path / "cache"), **kwargs}).load(with_labels)

    return load


def make_source(kind: str, folder: Path, splits: tuple[str, ...]) -> dict[str, str]:
    """Writes the splits in some way; returns the arguments to read them with."""
    if kind == "folders of a class each":
        write(folder / "here", files_of("train"))
        arguments = {"train_dir": str(folder / "here")}
        if "validation" in splits:
            arguments["validation_dir"] = write(folder / "there", files_of("validation"))
        return arguments
    name = folder / "pets"
    if kind == "folder of images":
        for split in splits:
            write(name / split, files_of(split))
    elif kind == "folder of parquet":
        name.mkdir()
        for split in splits:
            rows = split_of(split)
            rows.select(range(4)).to_parquet(name / f"{split}-00000-of-00002.parquet")
            rows.select(range(4, len(rows))).to_parquet(name / f"{split}-00001-of-00002.parquet")
    elif kind == "parquet file":
        name = folder / "pets.parquet"
        split_of("train").to_parquet(name)
    elif kind == "saved to disk":
        datasets.DatasetDict({split: split_of(split) for split in splits}).save_to_disk(name)
    return {"dataset_name": str(name)}


KINDS = ["folders of a class each", "folder of images", "folder of parquet", "parquet file", "saved to disk"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_sources(kind, streaming, load, tmp_path):
    source = make_source(kind, tmp_path, ("train", "validation"))
    if kind == "saved to disk" and streaming:
        with pytest.raises(ValueError, match="was written by save_to_disk and is read by rows; leave out streaming"):
            load(**source, streaming=True)
        return
    data = load(**source, with_labels=True, streaming=streaming, train_val_split=0)
    assert data.is_streamed == streaming
    assert data.label_names == list(CLASSES)
    assert (data.image_column, data.label_column) == ("image", "label")
    assert data.name == {KINDS[0]: "here", "parquet file": "pets.parquet"}.get(kind, "pets")
    rows = found(data, data.train)
    assert len(rows) == 15
    assert set(rows) == expected("train")
    if kind == "parquet file":
        assert data.validation is None
    else:
        assert len(data.validation) == 6
        assert set(found(data, data.validation)) == expected("validation")


@pytest.mark.parametrize("streaming", [False, True])
def test_without_labels(streaming, load, tmp_path):
    data = load(**make_source("folder of images", tmp_path, ("train", "validation")), streaming=streaming)
    assert data.label_column is None
    assert data.label_names == []
    for rows in (data.train, data.validation):
        assert {tuple(row) for row in rows} == {("image",)}
        label_of = data.reader(rows, 3).label
        assert {label_of(row) for row in rows} == {0}


HUB_SCRIPT = """
import json, sys
from transformers_nim.data.loading import ImageSource, decode_picture
answers = []
for name, streaming in json.loads(sys.argv[1]):
    data = ImageSource(name, streaming=streaming, train_val_split=0, token="hf_loopback").load(with_labels=True)
    label_of = data.reader(data.train, 3).label
    answer = []
    for row in data.train:
        try:
            pixel = decode_picture(row["image"], 3, data.token).getpixel((3, 3))
        except Exception:
            pixel = [0, 0, 0]
        answer.append([data.label_names[label_of(row)], pixel])
    answers.append(answer)
print(json.dumps([data.name, answers]))
"""


def test_sources_on_the_hub(loopback_hub, tmp_path):
    table = io.BytesIO()
    split_of("train").to_parquet(table)
    loopback_hub.add("nim/table", {"data/train-00000-of-00001.parquet": table.getvalue()}, "dataset")
    files = files_of("train") | {"cat/broken.png": b"broken"}
    loopback_hub.add("nim/folder", {f"train/{path}": file for path, file in files.items()}, "dataset")
    sources = [(name, streaming) for name in ("nim/table", "nim/folder") for streaming in (False, True)]
    done = subprocess.run(
        [sys.executable, "-c", HUB_SCRIPT, json.dumps(sources)],
        env=loopback_hub.environment(tmp_path) | {"OMP_NUM_THREADS": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    name, answers = json.loads(done.stdout.splitlines()[-1])
    assert name == "nim/folder"
    for source, rows in zip(sources, answers):
        found = [(name, tuple(pixel)) for name, pixel in rows]
        undecodable = [("cat", (0, 0, 0))] if source[0] == "nim/folder" else []
        assert sorted(found) == sorted([*expected("train"), *undecodable]), source


# Splits.


@pytest.mark.parametrize("kind", ["folder of images", "folder of parquet", "saved to disk"])
def test_a_test_split_is_not_for_validation(kind, load, tmp_path):
    source = make_source(kind, tmp_path, ("train", "test"))
    assert load(**source, train_val_split=0).validation is None
    data = load(**source, train_val_split=0.2, with_labels=True)
    assert len(data.validation) == 3
    assert set(found(data, data.train)) | set(found(data, data.validation)) == expected("train")
    data = load(**source, validation_split_name="test", with_labels=True)
    assert set(found(data, data.validation)) == expected("test")
    assert len(data.train) == 15


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_names_of_validation_splits(name, load, tmp_path):
    splits = {"train": split_of("train"), "test": split_of("test"), name: split_of("validation")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "pets")
    data = load(str(tmp_path / "pets"), with_labels=True)
    assert set(found(data, data.validation)) == expected("validation")
    assert len(data.train) == 15


def test_splits_by_name(load, tmp_path):
    splits = {"test": split_of("train"), "validation": split_of("test"), "extra": split_of("validation")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "pets")
    data = load(str(tmp_path / "pets"), train_split_name="test", validation_split_name="extra", with_labels=True)
    assert set(found(data, data.train)) == expected("train")
    assert set(found(data, data.validation)) == expected("validation")


def test_images_are_held_out(load, tmp_path):
    source = make_source("saved to disk", tmp_path, ("train",))
    files = sorted((tmp_path / "pets").rglob("*"))
    held_out = []
    for seed in (0, 0, 1):
        data = load(**source, train_val_split=0.2, seed=seed, with_labels=True)
        train, validation = found(data, data.train), found(data, data.validation)
        assert (len(train), len(validation)) == (12, 3)
        assert set(train) | set(validation) == expected("train")
        held_out.append(set(validation))
    # The same with every seed: runs can be compared, and pretraining has not seen those of fine-tuning.
    assert held_out[0] == held_out[1] == held_out[2]
    assert len(load(**source).validation) == 2  # a tenth
    # The folder need not be writable.
    assert sorted((tmp_path / "pets").rglob("*")) == files


def test_streams_hold_out_nothing(load, tmp_path):
    data = load(**make_source("folder of parquet", tmp_path, ("train", "test")), streaming=True)
    assert data.validation is None


def test_some_images_chosen_at_random(load, tmp_path):
    source = make_source("folder of parquet", tmp_path, ("train", "validation"))
    chosen = []
    for seed in (0, 0, 1):
        data = load(**source, max_train_samples=6, max_eval_samples=4, seed=seed, with_labels=True)
        train, validation = found(data, data.train), found(data, data.validation)
        assert (len(set(train)), len(train), len(set(validation)), len(validation)) == (6, 6, 4, 4)
        assert set(train) < expected("train")
        assert set(validation) < expected("validation")
        # The images are sorted by class.
        assert len({name for name, _ in train}) > 1
        assert data.label_names == list(CLASSES)
        chosen.append((train, validation))
    assert chosen[0] == chosen[1] != chosen[2]
    data = load(**source, max_train_samples=16, max_eval_samples=100)
    assert (len(data.train), len(data.validation)) == (15, 6)


def test_the_first_images_of_a_stream(load, tmp_path):
    source = make_source("parquet file", tmp_path, ("train",))
    data = load(**source, max_train_samples=7, streaming=True, with_labels=True)
    assert set(found(data, data.train)) == set(found(data, split_of("train").select(range(7))))
    source = make_source("folder of parquet", tmp_path, ("train", "validation"))
    data = load(**source, max_eval_samples=2, streaming=True, with_labels=True)
    assert found(data, data.validation) == [("ant", color("validation", "ant", i)) for i in range(2)]
    assert len(list(data.train)) == 15


def test_streams_are_shuffled(load, tmp_path):
    source = make_source("parquet file", tmp_path, ("train",))

    def order(**arguments) -> list:
        data = load(**source, streaming=True, with_labels=True, **arguments)
        return found(data, data.train)

    assert order() == order()
    assert order() != order(seed=1)
    in_file = found(load(**source, with_labels=True), split_of("train"))
    assert order(shuffle_buffer=1) == in_file
    assert order() != in_file
    # A buffer of two images reaches no further.
    assert abs(order(shuffle_buffer=2).index(in_file[0])) <= 2


# Columns.


def test_columns_are_found(load, tmp_path):
    label, text = datasets.ClassLabel(names=["a", "b"]), datasets.Value("string")
    picture = {"bytes": png((1, 2, 3)), "path": None}
    number = datasets.Value("int64")
    cases = [
        # By type.
        ({"photo": datasets.Image(), "kind": label, "text": text}, ("photo", "kind")),
        # By name among several of the type.
        ({"mask": datasets.Image(), "image": datasets.Image(), "cls": label, "other": label}, ("image", "cls")),
        ({"img": datasets.Image(), "coarse_label": label, "fine_label": label}, ("img", "fine_label")),
        # By name alone.
        ({"jpg": {"bytes": datasets.Value("binary"), "path": text}, "label": text, "x": number}, ("jpg", "label")),
        ({"png": datasets.Value("binary"), "labels": number}, ("png", "labels")),
        # The type is stronger than the name.
        ({"image": text, "photo": datasets.Image(), "label": text, "kind": label}, ("photo", "kind")),
    ]
    cells = {datasets.Image: picture, datasets.ClassLabel: 1, dict: picture}
    for number, (features, (image_column, label_column)) in enumerate(cases):
        cells_of_dtype = {"string": "a", "int64": 1, "binary": png((1, 2, 3))}
        row = {c: cells.get(type(f), cells_of_dtype.get(getattr(f, "dtype", None))) for c, f in features.items()}
        path = str(tmp_path / f"{number}.parquet")
        datasets.Dataset.from_list([row], features=datasets.Features(features)).to_parquet(path)
        for streaming in (False, True):
            if streaming and label_column in ("label", "labels"):
                continue
            data = load(path, with_labels=True, train_val_split=0, streaming=streaming)
            assert (data.image_column, data.label_column) == (image_column, label_column)
            (row,) = data.train
            assert decode_picture(row[image_column], 3).getpixel((0, 0)) == (1, 2, 3)
            assert row.keys() == {image_column, label_column}
            data = load(path, train_val_split=0, streaming=streaming, image_column_name=next(iter(features)))
            assert data.image_column == next(iter(features))


def test_columns_by_name(load, tmp_path):
    rows = split_of("train").rename_columns({"image": "left", "label": "kind"})
    rows = rows.add_column("right", [{"bytes": png((9, 9, 9)), "path": None}] * 15)
    rows = rows.add_column("group", ["x", "y", "z"] * 5)
    rows.to_parquet(tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    data = load(path, image_column_name="right", label_column_name="group", with_labels=True, train_val_split=0)
    assert data.label_names == ["x", "y", "z"]
    assert set(found(data, data.train)) == {(name, (9, 9, 9)) for name in "xyz"}
    for arguments in ({"image_column_name": "middle"}, {"with_labels": True, "label_column_name": "middle"}):
        with pytest.raises(
            ValueError, match=r"_column_name: there is no column 'middle'; there are \['left', 'kind', 'right"
        ):
            load(path, **arguments)


def test_columns_that_cannot_be_told(load, tmp_path):
    rows = split_of("train").rename_columns({"image": "left", "label": "kind"})
    rows = rows.add_column("right", [{"bytes": png((9, 9, 9)), "path": None}] * 15).cast_column(
        "right", datasets.Image()
    )
    rows.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"cannot tell which of the columns \['left', 'kind', 'right'\] .*image_column_name$"
    ):
        load(str(tmp_path / "a.parquet"))
    rows.remove_columns(["kind", "right"]).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(
        ValueError, match=r"cannot tell which of the columns \['left'\] to use; pass label_column_name"
    ):
        load(str(tmp_path / "b.parquet"), with_labels=True)


def test_other_columns_stay_closed(load, tmp_path):
    """A broken mask must not end a run that never looks at masks."""
    rows = split_of("train").add_column("mask", [{"bytes": b"broken", "path": None}] * 15)
    rows.cast_column("mask", datasets.Image()).to_parquet(tmp_path / "a.parquet")
    for streaming in (False, True):
        data = load(str(tmp_path / "a.parquet"), with_labels=True, train_val_split=0, streaming=streaming)
        assert len(found(data, data.train)) == 15


@pytest.mark.parametrize("streaming", [False, True])
def test_validation_lacks_a_column(streaming, load, monkeypatch):
    splits = {"train": split_of("train"), "validation": split_of("test").remove_columns("label")}
    if streaming:
        splits = {name: rows.to_iterable_dataset() for name, rows in splits.items()}
    # Files with other columns could not be loaded together.
    monkeypatch.setattr(data_module, "_load_splits", lambda *args: splits)
    assert len(load("pets", streaming=streaming).validation) == 9
    with pytest.raises(ValueError, match=r"the split to validate with has no column 'label'; there are \['image'\]"):
        load("pets", with_labels=True, streaming=streaming)


def test_formats_of_saved_data_are_dropped(load, tmp_path):
    split_of("train").with_format("torch").save_to_disk(tmp_path / "pets")
    data = load(str(tmp_path / "pets"), with_labels=True, train_val_split=0)
    assert set(found(data, data.train)) == expected("train")


# Labels.


def test_labels_without_names(load, tmp_path):
    cases = {
        "strings": (["b", "a", "c"], ["a", "b", "c"]),
        "numbers": ([10, 2, 7], ["2", "7", "10"]),
        "truth values": ([True, False, True], ["False", "True"]),
        "one class": ([3, 3, 3], ["3"]),
    }
    for name, (labels, names) in cases.items():
        path = str(tmp_path / f"{name}.parquet")
        images = [{"bytes": png((i, 0, 0)), "path": None} for i in range(3)]
        datasets.Dataset.from_dict({"image": images, "label": labels}).to_parquet(path)
        data = load(path, with_labels=True, train_val_split=0)
        assert data.label_names == names
        assert found(data, data.train) == [(str(label), (i, 0, 0)) for i, label in enumerate(labels)]
        with pytest.raises(ValueError, match="the labels in the column 'label' of this stream have no names"):
            load(path, with_labels=True, streaming=True)


@pytest.mark.parametrize("labels", [[0.5, 1.0], [None, "a"], [None, None], [[1], [0]], [{"a": 1}, {"a": 2}]])
def test_columns_that_hold_no_labels(labels, load, tmp_path):
    images = [{"bytes": png((i, 0, 0)), "path": None} for i in range(2)]
    datasets.Dataset.from_dict({"image": images, "label": labels}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="the column 'label' does not hold class labels, but "):
        load(str(tmp_path / "a.parquet"), with_labels=True)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("classes", [("bee", "cat"), ("cat",), ("ant", "bee", "cat")])
def test_validation_folders_with_other_numbers(classes, streaming, load, tmp_path):
    data = load(
        train_dir=write(tmp_path / "here", files_of("train")),
        validation_dir=write(tmp_path / "there", files_of("validation", classes)),
        with_labels=True,
        streaming=streaming,
    )
    assert data.label_names == list(CLASSES)
    assert set(found(data, data.validation)) == {pair for pair in expected("validation") if pair[0] in classes}
    assert len(data.validation) == 2 * len(classes)


@pytest.mark.parametrize("streaming", [False, True])
def test_validation_folders_with_other_classes(streaming, load, tmp_path):
    data = load(
        train_dir=write(tmp_path / "here", files_of("train", ["ant", "cat"])),
        validation_dir=write(tmp_path / "there", files_of("validation")),
        with_labels=True,
        streaming=streaming,
    )
    message = r"label 'bee', which is none of the 2 classes to train on \(ant, cat\); test splits often come without"
    with pytest.raises(UnknownLabelError, match=message):
        found(data, data.validation)


def test_labels_of_validation_in_other_forms(load, tmp_path):
    """Names as strings where training has them as numbers, and the other way round."""
    named = split_of("validation")
    spelt = named.cast_column("label", datasets.Value("string"))
    spelt = spelt.map(lambda row: {"label": CLASSES[int(row["label"])]}, load_from_cache_file=False)
    for train, validation in ((split_of("train"), spelt), (spelt, named)):
        datasets.DatasetDict({"train": train, "validation": validation}).save_to_disk(tmp_path / f"pets{len(train)}")
        data = load(str(tmp_path / f"pets{len(train)}"), with_labels=True)
        assert data.label_names == list(CLASSES)
        assert set(found(data, data.validation)) == expected("validation")


def test_unknown_labels():
    names = [f"class {i}" for i in range(12)]
    features = datasets.Features({"image": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    rows = datasets.Dataset.from_dict({"image": [""], "label": [3]}, features=features)
    data = ImageData("x", rows, None, "image", "label", names)
    read = data.reader(rows, 3).label
    assert [read({"label": i}) for i in range(12)] == list(range(12))
    for label in (-1, 12, None):
        with pytest.raises(
            UnknownLabelError, match=rf"label {label}, which is none of the 12 classes .*class 9, \.\.\."
        ):
            read({"label": label})
    numbers = rows.cast_column("label", datasets.Value("int64"))
    read = ImageData("x", numbers, None, "image", "label", ["0", "1"]).reader(numbers, 3).label
    assert [read({"label": i}) for i in (1, 0)] == [1, 0]
    for label in (-1, 2, None):
        with pytest.raises(UnknownLabelError, match=rf"label {label}, which is none of the 2 classes .*\(0, 1\);"):
            read({"label": label})
    # A number is not the class at its place.
    with pytest.raises(UnknownLabelError, match="label 3, which is none"):
        data.reader(numbers, 3).label({"label": 3})


def test_readers_travel_to_workers(load, tmp_path):
    data = load(**make_source("parquet file", tmp_path, ()), with_labels=True, train_val_split=0)
    read = pickle.loads(pickle.dumps(data.reader(data.train, 3)))
    assert [read.label(row) for row in data.train] == [0] * 5 + [1] * 5 + [2] * 5


# Folders as people have them.


def test_untidy_folders(load, tmp_path):
    folder = tmp_path / "pets"
    write(folder, files_of("train", ["ant", "cat"]))
    write(folder, {"README.txt": b"hello", "ant/Thumbs.db": b"x", ".git/x.png": png((1, 1, 1)), "cat/.0.png": b"x"})
    # One class is a link, as in subsets of large data sets.
    write(
        tmp_path / "elsewhere", {path.replace("bee", "7"): file for path, file in files_of("train", ["bee"]).items()}
    )
    os.symlink(tmp_path / "elsewhere" / "7", folder / "bee")
    for streaming in (False, True):
        data = load(train_dir=str(folder), with_labels=True, train_val_split=0, streaming=streaming)
        assert sorted(found(data, data.train)) == sorted(expected("train"))


def test_folders_with_names_like_patterns(load, tmp_path):
    folder = tmp_path / "pets [small] *"
    write(folder, files_of("train", ["ant", "bee"]) | {"cat [b]?/0.png": png((0, 1, 2))})
    write(tmp_path / "pets s xyz", files_of("test"))
    data = load(train_dir=str(folder), with_labels=True, train_val_split=0)
    assert data.label_names == ["ant", "bee", "cat [b]?"]
    rows = {pair for pair in expected("train") if pair[0] != "cat"} | {("cat [b]?", (0, 1, 2))}
    assert sorted(found(data, data.train)) == sorted(rows)
    assert data.name == "pets [small] *"
    flat = write(tmp_path / "[flat]", {f"{i}.png": png((i, 0, 0)) for i in range(3)})
    assert len(load(train_dir=flat, train_val_split=0).train) == 3
    os.symlink(folder / "ant", folder / "cat")
    with pytest.raises(ValueError, match=r"has links in it, which cannot be read where a name has one of \*\?\["):
        load(train_dir=str(folder))


def test_classes_that_are_called_like_splits(load, tmp_path):
    files = {f"{name}/0.png": png((i, 0, 0)) for i, name in enumerate(("test", "train", "val"))}
    folder = write(tmp_path / "here", files)
    with pytest.raises(ValueError, match=r"here/train, each class needs a folder .* 1 picture \(0\.png\) lies there"):
        load(train_dir=folder, with_labels=True)
    data = load(train_dir=folder)
    assert (len(data.train), len(data.validation)) == (1, 1)
    # Beside one that is called otherwise, they are classes.
    write(tmp_path / "here", {"bus/0.png": png((3, 0, 0))})
    data = load(train_dir=folder, with_labels=True, train_val_split=0)
    assert data.validation is None
    assert sorted(name for name, _ in found(data, data.train)) == ["bus", "test", "train", "val"]


def test_folders_without_classes(load, tmp_path):
    flat = write(tmp_path / "flat", {f"{i}.png": png((i, 0, 0)) for i in range(3)})
    assert len(load(train_dir=flat, train_val_split=0).train) == 3
    with pytest.raises(ValueError, match=r"3 pictures \(0\.png\) lie there and there are no folders of classes"):
        load(train_dir=flat, with_labels=True)


def test_changed_folders_are_read_anew(load, tmp_path):
    folder = Path(write(tmp_path / "here", files_of("train")))
    assert len(load(train_dir=str(folder), train_val_split=0).train) == 15
    (folder / "ant" / "new.png").write_bytes(png((0, 0, 0)))
    assert len(load(train_dir=str(folder), train_val_split=0).train) == 16


def test_caches_are_where_they_should_be(load, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "default")
    load(train_dir=write(tmp_path / "here", files_of("train")))
    load(**make_source("parquet file", tmp_path, ()))
    assert not (tmp_path / "default").exists()
    assert len(list((tmp_path / "cache").rglob("*.arrow"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either a dataset_name or a train_dir"),
        ({"dataset_name": "a", "train_dir": "b"}, "give either a dataset_name or a train_dir"),
        ({"dataset_name": "a", "validation_dir": "b"}, "a validation_dir goes with a train_dir"),
        ({"dataset_name": "a", "train_val_split": 1.0}, "train_val_split must be at least 0 and less than 1, got 1.0"),
        ({"dataset_name": "a", "train_val_split": -0.1}, "got -0.1"),
        ({"dataset_name": "a", "max_train_samples": 0}, "max_train_samples must be an int of at least 1, got 0"),
        ({"dataset_name": "a", "max_eval_samples": -3}, "max_eval_samples must be an int of at least 1, got -3"),
        ({"dataset_name": "a", "shuffle_buffer": 0}, "shuffle_buffer must be an int of at least 1, got 0"),
        ({"dataset_name": "nowhere/a.parquet"}, "no such file: nowhere/a.parquet"),
        ({"dataset_name": __file__}, r"in a single file must be a .parquet file, got .*test_loading.py"),
        ({"train_dir": "nowhere"}, "no such folder of images: nowhere"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageSource(**arguments).load()


def test_splits_that_are_not_there(load, tmp_path):
    source = make_source("saved to disk", tmp_path, ("train", "validation"))
    with pytest.raises(ValueError, match=r"no split 'trian' to train on; there are \['train', 'validation'\]"):
        load(**source, train_split_name="trian")
    with pytest.raises(ValueError, match=r"no split 'test' to validate with; there are \['train', 'validation'\]"):
        load(**source, validation_split_name="test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"cannot read images from the folder .*empty"):
        load(train_dir=str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("empty", "streaming"), [("train", False), ("validation", False), ("validation", True)]
)  # an empty stream shows when it is read
def test_splits_without_images(empty, streaming, load, monkeypatch):
    splits: dict[str, Any] = {"train": split_of("train"), "validation": split_of("validation")}
    if streaming:
        splits = {name: rows.to_iterable_dataset() for name, rows in splits.items()}
    splits[empty] = splits[empty].take(0)
    # Reading them from files, `datasets` itself would complain.
    monkeypatch.setattr(data_module, "_load_splits", lambda *args: splits)
    with pytest.raises(ValueError, match="there are no images to train on or to validate with"):
        load("pets", streaming=streaming)


def test_tokens_are_not_shown(load, tmp_path):
    data = load(**make_source("parquet file", tmp_path, ()), token="hf_secret")
    assert data.token == "hf_secret"
    assert "hf_secret" not in repr(data)


# Pictures.

PIXELS = np.arange(90, dtype=np.uint8).reshape(5, 6, 3)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def test_pictures_in_any_form(tmp_path):
    picture = Image.fromarray(PIXELS)
    content = encoded(picture)
    path = str(tmp_path / "a.png")
    picture.save(path)
    with fsspec.open("memory://nim/a.png", "wb") as file:
        file.write(content)
    forms = {
        "bytes": content,
        "bytes of a row": {"bytes": content, "path": "nowhere.png"},
        "path": path,
        "path of a row": {"bytes": None, "path": path},
        "path alone": {"path": path},
        "address": {"bytes": None, "path": "memory://nim/a.png"},
        "picture": picture,
        "array": PIXELS,
        "long integers": PIXELS.astype(np.int64),
        "lists": PIXELS.tolist(),
        "fractions": PIXELS / 255,
        "channels first": PIXELS.transpose(2, 0, 1),
        "tensor": torch.from_numpy(PIXELS),
        "file": tmp_path / "a.png",
    }
    for form, value in forms.items():
        decoded = decode_picture(value, 3)
        assert decoded.mode == "RGB", form
        assert np.array_equal(np.asarray(decoded), PIXELS), form
    for grey in (PIXELS[:, :, 0], PIXELS[:, :, :1]):
        assert np.array_equal(np.asarray(decode_picture(grey, 1)), PIXELS[:, :, 0])
    assert decode_picture(content, 1).mode == "L"


def test_pictures_are_upright_and_opaque():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode_picture(encoded(Image.fromarray(PIXELS), exif=exif), 3)
    assert np.array_equal(np.asarray(turned), np.rot90(PIXELS, -1))
    assert decode_picture(encoded(Image.new("RGBA", (2, 2), (10, 20, 30, 0))), 3).getpixel((0, 0)) == (255, 255, 255)


def test_addresses_are_opened_with_the_token(monkeypatch):
    opened = []
    monkeypatch.setattr(
        data_module.fsspec, "open", lambda *args, **kwargs: opened.append((args, kwargs)) or io.BytesIO(png((1, 2, 3)))
    )
    cell = {"bytes": None, "path": "hf://datasets/nim/pets/a.png"}
    assert decode_picture(cell, 3, "hf_secret").getpixel((0, 0)) == (1, 2, 3)
    assert opened == [(("hf://datasets/nim/pets/a.png",), {"hf": {"token": "hf_secret"}})]


def bomb() -> bytes:
    """A PNG file that says it has 400 million pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


BROKEN = {
    "no image": None,
    "an empty row": {"bytes": None, "path": None},
    "no bytes": {"bytes": b"", "path": "a.png"},
    "text": {"bytes": b"this is a text file", "path": "a.png"},
    "half a PNG": encoded(Image.fromarray(PIXELS).resize((40, 40)))[:-60],
    "half a JPEG": encoded(Image.fromarray(PIXELS).resize((40, 40)), "JPEG")[:-60],
    "the beginning of a PNG": png((1, 2, 3))[:20],
    "a bomb": bomb(),
    "no file": {"bytes": None, "path": "nowhere.png"},
    "no address": "memory://nowhere/a.png",
    "fractions beyond one": PIXELS / 20,
    "a batch": PIXELS[None],
    "a folder": ".",
    "numbers beyond a byte": PIXELS.astype(np.int64) + 200,
    "negative numbers": PIXELS.astype(np.int64) - 1,
    "nothing": np.zeros((0, 5, 3), dtype=np.uint8),
    "a number": 5,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_picture(kind):
    with pytest.raises(Exception) as error:  # noqa: PT011 - whatever it is
        decode_picture(BROKEN[kind], 3)
    assert str(error.value)
