# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Keep decoded pictures in memory, so that the DataLoader's workers do not decode them again in each epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..utils.extras import require
from .loading import RowReader


# Pictures by which the size of all is judged.
_SAMPLE = 64


@dataclass(frozen=True)
class DecodedImages:
    """Pictures and classes of rows, in tensors that the DataLoader's workers share.

    Workers that are forked share the memory of their parent, and others get tensors by shared memory.

    Attributes:
        pixels: The bytes of all pictures, one after the other.
        ends: End of each picture in them, shape `(rows,)`; one that cannot be decoded has no bytes.
        sizes: Width and height of each picture, shape `(rows, 2)`.
        labels: Class of each picture, shape `(rows,)`.
        mode: Mode of the pictures, `"L"` or `"RGB"`.
    """

    pixels: torch.Tensor
    ends: torch.Tensor
    sizes: torch.Tensor
    labels: torch.Tensor
    mode: str

    @classmethod
    def read(
        cls, rows: Sequence[Mapping[str, Any]], reader: RowReader, max_bytes: float, show_progress: bool = False
    ) -> "DecodedImages | None":
        """Decode all pictures.

        Args:
            rows: Undecoded rows.
            reader: Reader of the rows.
            max_bytes: Memory for the pictures.
            show_progress: Whether to show a bar.

        Returns:
            The pictures, or None if they need more memory or are on the web, where workers fetch many at a time.
        """
        chosen = [rows[row] for row in range(0, len(rows), max(len(rows) // _SAMPLE, 1))]
        if any("://" in reader.name("", row) for row in chosen):
            return None
        sampled = [_size(reader(row)[0]) for row in chosen]
        mean_bytes = reader.num_channels * sum(width * height for width, height in sampled) / len(sampled)
        if mean_bytes * len(rows) > max_bytes:
            return None
        bar = require("tqdm.auto").tqdm(
            range(len(rows)), desc="decoding", unit="image", disable=not show_progress, leave=False
        )
        pixels, ends, sizes, labels = bytearray(), [], [], []
        for row in bar:
            picture, label = reader(rows[row])
            if isinstance(picture, Image.Image):
                pixels += picture.tobytes()
            if len(pixels) > max_bytes:
                return None
            ends.append(len(pixels))
            sizes.append(_size(picture))
            labels.append(label)
        # A tensor cannot be made of no bytes.
        content = torch.frombuffer(pixels, dtype=torch.uint8) if pixels else torch.empty(0, dtype=torch.uint8)
        mode = "L" if reader.num_channels == 1 else "RGB"
        return cls(content, torch.tensor(ends), torch.tensor(sizes), torch.tensor(labels), mode)

    def __getitem__(self, row: int) -> tuple[Image.Image, int] | None:
        """Return picture and class of a row, or None if it cannot be decoded."""
        start, end = (int(self.ends[row - 1]) if row else 0), int(self.ends[row])
        if start == end:
            return None
        width, height = self.sizes[row].tolist()
        picture = Image.frombytes(self.mode, (width, height), self.pixels[start:end].numpy().tobytes())
        return picture, int(self.labels[row])


def _size(picture: Image.Image | Exception) -> tuple[int, int]:
    return picture.size if isinstance(picture, Image.Image) else (0, 0)
