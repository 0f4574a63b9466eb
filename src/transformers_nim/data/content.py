# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Know images by their content, wherever they lie, at a price that a million pictures can pay."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..utils.extras import require
from .loading import ImageData


# Pictures with no more bytes are read all.
_SMALL = 2**27
# Of others, so many, chosen at random: where one in 200 has changed, and its size has not, they show it in all but one
# of 28,000 cases.
_NUM_READ = 2048
# Of more pictures in files of their own the sizes are not asked for: a file server may take a millisecond for each.
_MAX_FILES = 100_000
# Rows of a stream; more would have to be downloaded.
_NUM_STREAMED = 64
_BATCH = 1000


def content_hash(data: ImageData) -> str:
    """Return a hash of images and labels in their order, of those to train on and those to validate with.

    It covers the size of every encoded picture, every label, and the bytes of pictures: all up to 128 MiB, else 2048
    of them. Of more than 100,000 pictures in files of their own it covers number, labels and those 2048, chosen at
    random: no change of the others is seen. Of a stream it covers the first 64 rows. Names and places of files do not
    matter.

    Args:
        data: The images; those of a stream are read once more, from its start.
    """
    digest = hashlib.sha256()
    for rows in (data.train, data.validation):
        if rows is None:
            digest.update(b"none")
        elif hasattr(rows, "__len__"):
            _add_rows(digest, rows, data)
        else:
            _add_stream(digest, data)
    return digest.hexdigest()[:16]


def _add_rows(digest: Any, rows: Any, data: ImageData) -> None:
    """Add a `datasets.Dataset`."""
    digest.update(f"{len(rows)} rows".encode())
    pictures = rows.select_columns([data.image_column])
    sizes = _sizes(pictures, data.image_column)
    if sizes is not None:
        digest.update(sizes.astype("<i8").tobytes())
    if data.label_column is not None:
        for labels in _batches(rows.select_columns([data.label_column]), data.label_column):
            digest.update(json.dumps(labels, default=str).encode())
    if sizes is None or sizes.sum() > _SMALL:
        chosen = np.random.default_rng(0).permutation(len(rows))[:_NUM_READ]
        pictures = pictures.select(np.sort(chosen), keep_in_memory=True)
    for values in _batches(pictures, data.image_column):
        for value in values:
            _add(digest, value)


def _add_stream(digest: Any, data: ImageData) -> None:
    """Add the first rows of a `datasets.IterableDataset`, before it is shuffled."""
    for row in itertools.islice(data.unshuffled.with_format(None), _NUM_STREAMED):
        _add(digest, row[data.image_column])
        digest.update(json.dumps(row.get(data.label_column), default=str).encode())


def _batches(rows: Any, column: str) -> Iterator[list[Any]]:
    for table in rows.with_format("arrow").iter(_BATCH):
        yield table.column(column).to_pylist()


def _sizes(pictures: Any, column: str) -> np.ndarray | None:
    """Return the sizes of encoded pictures in bytes, without reading them; None if not all are known, or too slowly.

    Return those of the whole table, even if only some of its rows were chosen.
    """
    compute, types = require("pyarrow.compute"), require("pyarrow.types")
    table = pictures.data.column(column)
    if types.is_struct(table.type) and table.type.get_field_index("bytes") >= 0:
        table = compute.struct_field(table, "bytes")
    if not types.is_binary(table.type) and not types.is_large_binary(table.type):
        return None
    if not table.null_count:
        return np.asarray(compute.binary_length(table))
    if table.null_count < len(table) or len(pictures) > _MAX_FILES:
        return None
    rows = itertools.chain.from_iterable(_batches(pictures, column))
    return np.fromiter((_file_size(row["path"]) for row in rows), np.int64)


def _file_size(path: str | None) -> int:
    try:
        return os.stat(path or "").st_size
    except OSError:
        # It is told as one that cannot be decoded.
        return -1


def _add(digest: Any, value: Any) -> None:
    """Add a picture, as a data set holds it before it is decoded."""
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str) and os.path.isfile(value):
        with open(value, "rb") as file:
            value = file.read()
    if not isinstance(value, bytes):
        # The address of a picture elsewhere, or its pixels as numbers.
        value = json.dumps(value, default=str).encode()
    # With its length, so that no two rows of pictures run into the same bytes.
    digest.update(f"{len(value)}:".encode() + value)
