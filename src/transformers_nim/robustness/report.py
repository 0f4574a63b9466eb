# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What an evaluation of robustness found: the records of all attacks, and the figures made of them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.records import replace_file
from .figures import ATTACK_GROUPS, NUM_VOTES, Row, Strongest, find_strongest, make_row
from .protocol import CLEAN, DEFAULT_PRECISION, FEW_STEPS, OFF_LARGE, UNBOUNDED, Cell, sigma_key
from .tables import describe, render
from .trade_off import SigmaChoice, TradeOff, choose_sigma, find_knee


RESULTS_FILE = "results.json"
_SETTINGS = ("suite", "model", "dataset", "split", "norm", "eps", "sigma", "strength", "seed", "dtype")


@dataclass
class RobustnessReport:
    """An evaluation as plain data, as `results.json` holds it. To change one, make another.

    Attributes:
        settings: What decides the figures: `suite`, `model`, `dataset`, `split`, `norm`, `eps` (units of 0..255
            pixels), the main `sigma` (`None` is a model without defense), `strength`, `seed`, `dtype` and more. Of
            older reports, which do not tell `attack_precision`, it is `"fp32"`.
        cells: The cells of the evaluation as dictionaries; see [`Cell`].
        images: For each image its `row` in the data set, a hash (`image`) and its true `label`, in the order in which
            cells take them.
        records: What became of one image in one cell: `predictions` under fresh noise and `scores` that the attacker
            may see, by name of the sigma with which the image was classified, and the `distance` it was moved.
        versions: Versions of the packages.
        wall_time: Seconds that the evaluation took; if it was resumed, since its last start.
        left_out: Sentences: rows of the protocol that were not measured, and why.
        cut: Sentences: what was made smaller to fit a time budget.
        checks: Sanity checks with `name`, `passed` (`None` where it does not apply) and `detail`.
        classes: Names of the classes.

    Raises:
        ValueError: A record is missing, or the data contradicts itself.
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
        # As JSON gives it back, so that a report equals the one that is read from its file.
        for name in (one.name for one in fields(self)):
            setattr(self, name, json.loads(json.dumps(getattr(self, name))))
        self.settings.setdefault("attack_precision", DEFAULT_PRECISION)
        absent = [name for name in _SETTINGS if name not in self.settings]
        if absent:
            raise ValueError(f"the settings of a report must have {list(_SETTINGS)}; missing: {absent}")
        if not self.images:
            raise ValueError("a report needs at least one image")
        self._cells: dict[str, Cell] = {}
        self._records: dict[str, list[dict[str, Any]]] = {}
        self._rows: dict[tuple[str, float | None], Row] = {}
        self._strongest: dict[tuple[float | None, float, bool], Strongest] = {}
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for record in self.records:
            if found.setdefault((record["cell"], record["row"]), record) is not record:
                raise ValueError(f"cell {record['cell']!r} has two records of row {record['row']}; remove one")
        for entry in self.cells:
            self._add_cell(Cell(**{**entry, "defense_sigmas": tuple(entry["defense_sigmas"])}), found)
        if CLEAN not in self._cells:
            raise ValueError(f"a report needs a cell {CLEAN!r}, of images without an attack; it has {[*self._cells]}")
        clean = self._cells[CLEAN]
        for cell in self._cells.values():
            unknown = [sigma_key(sigma) for sigma in cell.defense_sigmas if sigma not in clean.defense_sigmas]
            if unknown or len(self._records[cell.name]) > len(self._records[CLEAN]):
                raise ValueError(
                    f"cell {cell.name!r} has more images or sigmas {unknown} than cell {CLEAN!r}, its comparison"
                )
        if self.settings["sigma"] not in clean.defense_sigmas:
            raise ValueError(f"the main sigma {self.settings['sigma']!r} was not measured: {clean.defense_sigmas}")

    def _add_cell(self, cell: Cell, found: Mapping[tuple[str, int], dict[str, Any]]) -> None:
        if cell.name in self._cells:
            raise ValueError(f"two cells are called {cell.name!r}; names must differ")
        rows = [image["row"] for image in self.images[: cell.num_images]]
        missing = [row for row in rows if (cell.name, row) not in found]
        if missing:
            raise ValueError(
                f"the evaluation is not finished: cell {cell.name!r} has no record of row {missing[0]}"
                f" ({len(missing)} of its {len(rows)} images are missing); resume the run that makes them"
            )
        self._cells[cell.name] = cell
        self._records[cell.name] = [found[cell.name, row] for row in rows]
        for record in self._records[cell.name]:
            # Norms of single-precision images are rounded.
            if record["distance"] > cell.eps / 255 * (1 + 1e-4) + 1e-6:
                raise ValueError(
                    f"cell {cell.name!r} moved row {record['row']} by {record['distance']:.6g}, further than its eps"
                    f" of {cell.eps:g}/255 = {cell.eps / 255:.6g}"
                )
        for key in map(sigma_key, cell.defense_sigmas):
            numbers = {len(record["predictions"].get(key, ())) for record in self._records[cell.name]}
            if len(numbers) > 1 or (numbers != {1} and min(numbers) < NUM_VOTES):
                raise ValueError(
                    f"every image of cell {cell.name!r} needs equally many predictions with sigma {key}: one if the"
                    f" model answers equal images equally, otherwise at least {NUM_VOTES}; got {sorted(numbers)}"
                )

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

    @classmethod
    def load(cls, path: str | Path) -> "RobustnessReport":
        """Reads a report.

        Args:
            path: Its file, or the folder of its `results.json`.

        Raises:
            ValueError: The file does not hold a report.
        """
        path = Path(path)
        path = path / RESULTS_FILE if path.is_dir() else path
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(data, dict):
                raise ValueError(f"it holds a {type(data).__name__}")
            return cls.from_dict(data)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a report of robustness: {error}") from error

    def save(self, folder: str | Path) -> Path:
        """Writes `results.json`, as a whole or not at all.

        Args:
            folder: Where to; it is made if it is not there.

        Returns:
            The path of the file.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / RESULTS_FILE, json.dumps(self.to_dict(), indent=1) + "\n")
        return folder / RESULTS_FILE

    @property
    def images_hash(self) -> str:
        """Hash of the rows and of what the images of these rows are."""
        identities = {image["row"]: image["image"] for image in self.images}
        return hashlib.sha256(json.dumps(sorted(identities.items())).encode()).hexdigest()[:16]

    @property
    def sigmas(self) -> tuple[float | None, ...]:
        """Every sigma of the defense, the smallest first; `None` (off) before all."""
        return tuple(sorted(self._cells[CLEAN].defense_sigmas, key=lambda sigma: -1.0 if sigma is None else sigma))

    @property
    def radii(self) -> tuple[float, ...]:
        """Every eps of the attacks apart from checks, in units of 0..255 pixels, the smallest first."""
        return tuple(sorted({cell.eps for cell in self._cells.values() if cell.group in ATTACK_GROUPS}))

    @property
    def cell_names(self) -> tuple[str, ...]:
        """Names of all cells."""
        return tuple(self._cells)

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
        predictions = self.predictions(cell_name, sigma)
        return predictions == self.labels(len(predictions))[:, None]

    def predictions(self, cell_name: str, sigma: float | None) -> np.ndarray:
        """The predicted classes themselves; see [`RobustnessReport.correct`]."""
        records = self._records_with(cell_name, sigma)
        return np.array([record["predictions"][sigma_key(sigma)] for record in records])

    def scores(self, cell_name: str, sigma: float | None) -> np.ndarray:
        """What the attacker may choose by: share of wrong answers and mean margin, shape `(images, 2)`."""
        return np.array([record["scores"][sigma_key(sigma)] for record in self._records_with(cell_name, sigma)])

    def labels(self, num_images: int) -> np.ndarray:
        """True classes of the first so many images."""
        return np.array([image["label"] for image in self.images[:num_images]])

    def _records_with(self, cell_name: str, sigma: float | None) -> list[dict[str, Any]]:
        cell = self.cell(cell_name)
        if sigma not in cell.defense_sigmas:
            measured = [sigma_key(one) for one in cell.defense_sigmas]
            raise ValueError(f"cell {cell_name!r} was measured with sigma {measured}, not {sigma_key(sigma)}")
        return self._records[cell_name]

    @property
    def rows(self) -> list[Row]:
        """The figures of every cell under every sigma with which it was measured."""
        return [self.row(cell.name, sigma) for cell in self._cells.values() for sigma in cell.defense_sigmas]

    def row(self, cell_name: str, sigma: float | None) -> Row:
        """The figures of one cell under one sigma of the defense.

        Raises:
            ValueError: There is no such cell, or it was not measured with this sigma.
        """
        key = (cell_name, sigma)
        if key not in self._rows:
            self._rows[key] = make_row(self, self.cell(cell_name), sigma, self.predictions(cell_name, sigma))
        return self._rows[key]

    def strongest(self, sigma: float | None, eps: float | None = None, comparable: bool = False) -> Strongest:
        """What is left when the attacker uses, on each image, the attack that works best on it.

        The attacker chooses by `scores`: first the share of wrong answers, then the mean margin, both measured on
        noise draws of their own. What counts are the predictions, made on draws that took no part in the choice. Had
        the same draws served for both, the luckiest draws would win, and the more attacks there are, the worse even a
        defense that withstands all of them would look.

        Args:
            sigma: Sigma of the defense in units of 0..255 pixels; `None` is the defense switched off.
            eps: Radius in units of 0..255 pixels; the main one if left out.
            comparable: Only attacks that were made for every sigma alike. Most attacks are made for the main sigma, so
                with all of them it looks weaker than others that were merely attacked less.

        Returns:
            Figures over the images of the headline attack. Attacks that have fewer images, that know the noise, and
            checks are left out.

        Raises:
            ValueError: No attack was measured with this sigma and eps.
        """
        eps = self.settings["eps"] if eps is None else eps
        key = (sigma, eps, comparable)
        if key not in self._strongest:
            self._strongest[key] = find_strongest(self, sigma, eps, comparable)
        return self._strongest[key]

    def eps_curve(self, sigma: float | None) -> list[Row]:
        """The headline attack, made for this sigma and met with it, at every eps from small to large.

        The large eps of the checks, which is measured on fewer images, is the last; the unbounded one is left out.
        """
        found: dict[float, Row] = {}
        for cell in self._cells.values():
            if (
                (cell.attack, cell.gradient, cell.fixed_noise, cell.source) == ("eot_pgd", "full", False, None)
                and cell.attack_sigma == sigma
                and sigma in cell.defense_sigmas
                and cell.name not in (FEW_STEPS, UNBOUNDED, OFF_LARGE)
                # An attack by name has options of its own; that of a check has fewer images than that of a grid.
                and "default options" not in cell.name
                and (cell.eps not in found or cell.num_images > found[cell.eps].num_images)
            ):
                found[cell.eps] = self.row(cell.name, sigma)
        return [found[eps] for eps in sorted(found)]

    def trade_off(self) -> list[TradeOff]:
        """For every sigma of the defense its accuracy without an attack, and at the main eps under the strongest."""
        rows = [self.strongest(sigma, comparable=True).row for sigma in self.sigmas]
        return [TradeOff(row.defense_sigma, row.clean, row.accuracy) for row in rows]

    def recommend_sigma(self, min_clean_accuracy: float = 0.0) -> SigmaChoice:
        """The sigma with the highest accuracy at the main eps, among those that classify clean images well enough.

        Sigmas are compared under the attacks that were made for all of them alike; see [`RobustnessReport.strongest`].
        The choice is made on the images that the figures are measured on, which favors the winner a little: for an
        unbiased figure evaluate the chosen sigma on other images.

        Args:
            min_clean_accuracy: Least accuracy without an attack, in [0, 1].

        Returns:
            The sigma with the highest robust accuracy, of equals that with the higher clean accuracy.

        Raises:
            ValueError: `min_clean_accuracy` is out of range, or no sigma reaches it.
        """
        return choose_sigma(self, min_clean_accuracy)

    def knee(self) -> TradeOff | None:
        """The sigma beyond which robustness becomes expensive.

        Of the sigmas that no other beats in both accuracies, with either accuracy scaled to [0, 1], it is the one
        farthest above the straight line between the two ends (the knee of Satopaa et al. 2011, *Finding a "Kneedle" in
        a haystack*, without smoothing). It is chosen on the images that the figures are measured on, and with few
        images its place is uncertain.

        Returns:
            The knee; `None` if fewer than three sigmas are unbeaten, or none is above the line.
        """
        return find_knee(self.trade_off())

    def protocol(self) -> str:
        """Sentences that say what the figures mean and how they were made."""
        return describe(self)

    def table(self, min_clean_accuracy: float | None = None) -> str:
        """Everything that the report says, for a terminal or as Markdown.

        Args:
            min_clean_accuracy: Least clean accuracy of the recommended sigma, in [0, 1]; five points below the highest
                if left out.
        """
        return render(self, min_clean_accuracy)
