# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What an evaluation of robustness found: the records of all attacks, and the figures made of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from .suite import Cell, sigma_key


RESULTS_FILE = "results.json"


@dataclass
class RobustnessReport:
    """An evaluation as plain data, as `results.json` holds it.

    Attributes:
        settings: What decides the figures: `suite`, `model`, `dataset`, `norm`, `eps` and `sigmas` (units of 0..255
            pixels), the main `sigma` (`None` is a model without defense), `strength`, `seed` and more.
        cells: The cells of the evaluation as dictionaries; see [`Cell`].
        images: For each image its `row` in the data set, a hash (`image`) and its true `label`, in the order in which
            cells take them.
        records: What became of one image in one cell: `predictions` under fresh noise and `scores` that the attacker
            may see, by name of the sigma with which the image was classified, and the `distance` it was moved.
        versions: Versions of the packages.
        wall_time: Seconds that the evaluation took.
        left_out: Sentences: rows of the protocol that were not measured, and why.
        cut: Sentences: what was made smaller to fit a time budget.
        checks: Sanity checks with `name`, `passed` (`None` where it does not apply) and `detail`.
        classes: Names of the classes.
    """

    settings: dict[str, Any]
    cells: list[dict[str, Any]]
    images: list[dict[str, Any]]
    records: list[dict[str, Any]]
    versions: dict[str, str] = field(default_factory=dict)
    wall_time: float = 0.0
    left_out: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    classes: list[str] | None = None

    def __post_init__(self) -> None:
        # What JSON can hold, so that a report equals the one that is read from its file.
        for name in (one.name for one in fields(self)):
            setattr(self, name, json.loads(json.dumps(getattr(self, name))))
        found = {(record["cell"], record["row"]): record for record in self.records}
        self._cells: dict[str, Cell] = {}
        self._records: dict[str, list[dict[str, Any]]] = {}
        for entry in self.cells:
            cell = Cell(**{**entry, "defense_sigmas": tuple(entry["defense_sigmas"])})
            rows = [image["row"] for image in self.images[: cell.num_images]]
            missing = [row for row in rows if (cell.name, row) not in found]
            if missing:
                raise ValueError(
                    f"the evaluation is not finished: cell {cell.name!r} has no record of row {missing[0]}"
                    f" ({len(missing)} of its {len(rows)} images are missing); resume the run that makes them"
                )
            self._cells[cell.name] = cell
            self._records[cell.name] = [found[cell.name, row] for row in rows]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RobustnessReport":
        """The inverse of [`RobustnessReport.to_dict`].

        Raises:
            ValueError: A field is missing or unknown.
        """
        known = [one.name for one in fields(cls)]
        unknown = [name for name in data if name not in known]
        missing = [name for name in ("settings", "cells", "images", "records") if name not in data]
        if unknown or missing:
            raise ValueError(f"a report has the fields {known}; unknown: {unknown}, missing: {missing}")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, which JSON can hold."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def cell(self, name: str) -> Cell:
        """The cell of this name.

        Raises:
            ValueError: There is none.
        """
        if name not in self._cells:
            raise ValueError(f"no cell is called {name!r}; there are {list(self._cells)}")
        return self._cells[name]

    def correct(self, cell_name: str, sigma: float | None) -> np.ndarray:
        """Whether the predictions of the attacked images under fresh noise are right.

        Args:
            cell_name: Name of a cell.
            sigma: The defense's sigma in units of 0..255 pixels; `None` is the defense switched off.

        Returns:
            Booleans of shape `(images, draws)`, for the first so many images of the report. There is one draw where
            equal images are answered equally.

        Raises:
            ValueError: There is no such cell, or it was not measured with this sigma.
        """
        cell = self.cell(cell_name)
        if sigma not in cell.defense_sigmas:
            measured = [sigma_key(one) for one in cell.defense_sigmas]
            raise ValueError(f"cell {cell_name!r} was measured with sigma {measured}, not {sigma_key(sigma)}")
        predictions = [record["predictions"][sigma_key(sigma)] for record in self._records[cell_name]]
        labels = [image["label"] for image in self.images[: cell.num_images]]
        return np.array(predictions) == np.array(labels)[:, None]
