# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Look at folders of pictures before they are read: which splits they hold, and whether their classes are clear."""

import os
from collections import Counter
from pathlib import Path

from transformers.utils import logging

from ..utils.extras import require
from ..utils.text_table import plural


logger = logging.get_logger(__name__)

# What `datasets` takes for names of splits.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# A folder with one of these is read by other rules than that of one folder per class.
_TABLES = (".arrow", ".csv", ".json", ".jsonl", ".parquet", ".tar", ".tgz", ".tsv", ".zip")


def is_folder_of_pictures(folder: str | Path) -> bool:
    """Return whether a folder holds folders of pictures, and no tables, archives or descriptions of a data set."""
    top = _Listing(folder)
    if not top.folders or top.has_table or (Path(folder) / "README.md").is_file():
        return False
    below = [Path(root) for root, folders, _ in _walk(folder) if root != os.fspath(folder)]
    listings = [_Listing(path) for path in below]
    return any(one.pictures for one in listings) and not any(one.has_table for one in listings)


def picture_splits(folder: str | Path) -> dict[str, str] | None:
    """Return the folders of the splits in a folder, by `"train"`, `"validation"` and `"test"`.

    Returns:
        None if it holds no splits: then it is one folder with a folder for each class.

    Raises:
        ValueError: A split has two folders, or there are folders of splits and others.
    """
    names = _Listing(folder).folders
    found: dict[str, str] = {}
    for split, words in _SPLITS.items():
        named = [name for name in names if name.lower() in words]
        if len(named) > 1:
            raise ValueError(f"{folder} has two folders for one split, {' and '.join(named)}; leave one")
        if named:
            found[split] = os.path.join(folder, named[0])
    if len(found) == len(names) and all(_Listing(split).folders for split in found.values()):
        return found
    if "train" not in found or len(names) < 2:
        return None
    others = [name for name in names if name not in map(os.path.basename, found.values())]
    if not others:
        return found
    if _Listing(found["train"]).folders:
        raise ValueError(
            f"{folder} holds splits ({', '.join(map(os.path.basename, found.values()))}) and other folders"
            f" ({_some(others)}), which would mix; pass --train_dir {found['train']}"
        )
    # Pictures of trains, beside those of buses.
    return None


def check_classes(folder: str | Path, is_whole: bool = True) -> None:
    """Check that it is clear which class each picture of a folder belongs to, and say which files are left out.

    Args:
        folder: A folder with one folder of pictures per class.
        is_whole: Whether all classes have to be there, as in training, or some may lack, as in validation.

    Raises:
        ValueError: Pictures lie beside the folders of classes or deeper than in them, a class has no pictures, or
            there are fewer than two classes.
    """
    top = _Listing(folder)
    below = [(name, _Listing(os.path.join(folder, name))) for name in top.folders]
    if top.has_table or any(one.has_table for _, one in below):
        # Tables say which class a picture belongs to, and archives are read by `datasets`.
        return
    rule = f"in {folder}, each class needs a folder of its own with its pictures directly in it"
    if top.pictures:
        beside = "beside the folders of classes" if top.folders else "and there are no folders of classes"
        verb = "lies" if top.pictures == 1 else "lie"
        raise ValueError(f"{rule}: {plural(top.pictures, 'picture')} ({top.example}) {verb} there {beside}")
    deeper = [
        os.path.relpath(root, folder)
        for name, one in below
        for inner in one.folders
        for root, _, _ in _walk(os.path.join(folder, name, inner))
        if _Listing(root).pictures
    ]
    if deeper:
        raise ValueError(
            f"{rule}, and {_some(deeper)} {'lies' if len(deeper) == 1 else 'lie'} deeper. Move them up, or name the"
            " folders train, val and test if they are splits"
        )
    others = sum((one.others for _, one in below), Counter())
    empty = [name for name, one in below if not one.pictures]
    if is_whole and empty:
        kinds = sum((one.others for _, one in below if not one.pictures), Counter())
        there = f" (only {_kinds(kinds)})" if kinds else ""
        raise ValueError(f"{rule}: {_some(empty)} has no picture that can be read{there}. Fill or remove it")
    if is_whole and len(below) < 2:
        found = f"only {below[0][0]}" if below else "no folder"
        raise ValueError(f"{rule}, and a classifier needs two classes or more: there is {found}")
    if others:
        logger.warning(f"left out of {folder}, being no pictures that can be read: {_kinds(others)}")


class _Listing:
    """Contents of a folder; hidden files are left out, and links are followed."""

    def __init__(self, folder: str | Path) -> None:
        known = set(require("datasets.packaged_modules.imagefolder.imagefolder").ImageFolder.EXTENSIONS)
        self.folders: list[str] = []
        self.others: Counter[str] = Counter()
        self.pictures, self.has_table, self.example = 0, False, ""
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            ending = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                self.folders.append(entry.name)
            elif ending in known:
                self.pictures, self.example = self.pictures + 1, self.example or entry.name
            else:
                self.has_table |= ending in _TABLES
                self.others[ending or entry.name] += 1


def _walk(folder: str | Path):
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield root, folders, files


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _kinds(counts: Counter[str]) -> str:
    return ", ".join(f"{plural(number, 'file')} {ending}" for ending, number in counts.most_common(5))
