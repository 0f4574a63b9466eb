# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The measurements of an evaluation under attack as plain data, from which all figures are computed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..utils.records import replace_file
from ..utils.statistics import mean_accuracy, paired_difference
from ..utils.text_table import sigma_key
from .figures import NUM_VOTES, Row, SigmaChoice, Strongest, TradeOff, find_knee, measure, treating_all_alike
from .protocol import (
    ATTACK_GROUPS,
    BROKEN_BY,
    CLEAN,
    CLEAN_NOISE_KNOWN,
    DEFAULT_OPTIONS,
    FEW_STEPS,
    HEADLINE,
    OFF_LARGE,
    OLDER_SETTINGS,
    UNBOUNDED,
    AttackConfiguration,
)


RESULTS_FILE = "results.json"
STRONGEST = "strongest"

# What `results.json` holds.
_FIELDS = ("settings", "cells", "images", "records", "versions", "wall_time", "left_out", "cut", "checks", "classes")
_SETTINGS = ("suite", "model", "dataset", "split", "norm", "eps", "sigma", "strength", "seed", "dtype")


@dataclass
class Measurements:
    """An evaluation under attack as plain data, as `results.json` holds it. To change one, make another.

    [`RobustnessReport`] adds the tables and pictures.

    Attributes:
        settings: What decides the figures: `suite`, `model`, `dataset`, `split`, `norm`, `eps` (units of 0..255
            pixels), the main `sigma` (`None` is a model without a defense), `strength` (the attack budget), `seed`,
            `dtype` and more. `attack_precision` is `"fp32"` in reports from before it was recorded,
            `num_samples` (noise draws that a prediction combines) 1 and `vote` `"mean"`.
        cells: The attack configurations as dictionaries; see [`AttackConfiguration`].
        images: For each image its `row` in the data set, a hash (`image`) and its true `label`. An attack
            configuration takes the first so many.
        records: The result for one image under one attack configuration (`cell`): `predictions` under fresh noise and
            `scores` that the attacker may see, by name of the defense's sigma, and the `distance` of the perturbation.
        versions: Versions of the packages.
        wall_time: Seconds that the evaluation took; since its last start if it was resumed.
        left_out: Sentences that name parts of the protocol that were not measured, and why.
        cut: Sentences that name what was made smaller to fit a time budget.
        checks: Sanity checks with `name`, `passed` (`None` where it does not apply) and `detail`.
        classes: Names of the classes.
        samples: A few images before and after the headline attack, for [`plot_examples`]; no part of `results.json`.

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
    samples: list[dict[str, Any]] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        # As JSON gives it back, so that a report equals the one that is read from its file.
        for name in _FIELDS:
            setattr(self, name, json.loads(json.dumps(getattr(self, name))))
        for name, value in OLDER_SETTINGS.items():
            self.settings.setdefault(name, value)
        absent = [name for name in _SETTINGS if name not in self.settings]
        if absent:
            raise ValueError(f"the settings of a report must have {list(_SETTINGS)}; missing: {absent}")
        if not self.images:
            raise ValueError("a report needs at least one image")
        self._configurations: dict[str, AttackConfiguration] = {}
        self._records: dict[str, list[dict[str, Any]]] = {}
        self._rows: dict[tuple[str, float | None], Row] = {}
        self._strongest: dict[tuple[float | None, float, bool], Strongest] = {}
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for record in self.records:
            if found.setdefault((record["cell"], record["row"]), record) is not record:
                raise ValueError(f"{record['cell']!r} has two records of row {record['row']}; remove one")
        for entry in self.cells:
            configuration = AttackConfiguration(**{**entry, "defense_sigmas": tuple(entry["defense_sigmas"])})
            if configuration.name in self._configurations:
                raise ValueError(f"two attack configurations are called {configuration.name!r}; names must differ")
            self._configurations[configuration.name] = configuration
            self._records[configuration.name] = self._checked_records(configuration, found)
        self._check_clean_images()

    def _checked_records(
        self, configuration: AttackConfiguration, found: Mapping[tuple[str, int], dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return one record per image, or refuse records that are missing or cannot be."""
        name, eps = configuration.name, configuration.eps
        rows = [image["row"] for image in self.images[: configuration.num_images]]
        missing = [row for row in rows if (name, row) not in found]
        if missing:
            raise ValueError(
                f"the evaluation is not finished: {name!r} has no record of row {missing[0]} ({len(missing)} of its"
                f" {len(rows)} images are missing); resume the run that makes them"
            )
        records = [found[name, row] for row in rows]
        for record in records:
            # Pixels of single precision are rounded, which adds up in L2.
            rounding = 1e-6 if configuration.norm == "Linf" else 1e-4
            if record["distance"] > eps / 255 * (1 + 1e-4) + rounding:
                raise ValueError(
                    f"{name!r} moved row {record['row']} by {record['distance']:.6g}, further than its eps of"
                    f" {eps:g}/255 = {eps / 255:.6g}"
                )
        for key in map(sigma_key, configuration.defense_sigmas):
            numbers = {len(record["predictions"].get(key, ())) for record in records}
            if len(numbers) > 1 or (numbers != {1} and min(numbers) < NUM_VOTES):
                raise ValueError(
                    f"every image of {name!r} needs equally many predictions with sigma {key}: one if equal images get"
                    f" equal answers, otherwise at least {NUM_VOTES}; got {sorted(numbers)}"
                )
        return records

    def _check_clean_images(self) -> None:
        if CLEAN not in self._configurations:
            names = [*self._configurations]
            raise ValueError(f"a report needs the attack configuration {CLEAN!r}, without an attack; it has {names}")
        clean = self._configurations[CLEAN]
        for name, configuration in self._configurations.items():
            unknown = [sigma_key(sigma) for sigma in configuration.defense_sigmas if sigma not in clean.defense_sigmas]
            if unknown or len(self._records[name]) > len(self._records[CLEAN]):
                raise ValueError(f"{name!r} has more images or sigmas {unknown} than {CLEAN!r}, its comparison")
        if self.settings["sigma"] not in clean.defense_sigmas:
            raise ValueError(f"the main sigma {self.settings['sigma']!r} was not measured: {clean.defense_sigmas}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make a report of what [`Measurements.to_dict`] returned.

        Raises:
            ValueError: A field is missing or unknown.
        """
        unknown = [name for name in data if name not in _FIELDS]
        missing = [name for name in ("settings", "cells", "images", "records") if name not in data]
        if unknown or missing:
            raise ValueError(f"a report has the fields {list(_FIELDS)}; unknown: {unknown}, missing: {missing}")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, which JSON can hold."""
        return {name: getattr(self, name) for name in _FIELDS}

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a report.

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

    def save(self, path: str | Path) -> Path:
        """Write all but `samples` to a JSON file, as a whole or not at all.

        Args:
            path: The file, whose name ends with `.json`, or a folder, which gets a `results.json`. Folders that are
                not there are made.

        Returns:
            The path of the file.
        """
        path = Path(path)
        path = path if path.suffix == ".json" else path / RESULTS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(self.to_dict(), indent=1) + "\n")
        return path

    @property
    def images_hash(self) -> str:
        """Hash of the images and their rows."""
        identities = {image["row"]: image["image"] for image in self.images}
        return hashlib.sha256(json.dumps(sorted(identities.items())).encode()).hexdigest()[:16]

    @property
    def sigmas(self) -> tuple[float | None, ...]:
        """Every sigma of the defense, from small to large; `None` (off) before all."""
        sigmas = self._configurations[CLEAN].defense_sigmas
        return tuple(sorted(sigmas, key=lambda sigma: -1.0 if sigma is None else sigma))

    @property
    def radii(self) -> tuple[float, ...]:
        """Every eps apart from that of checks, in units of 0..255 pixels, from small to large."""
        return tuple(sorted({one.eps for one in self._configurations.values() if one.group in ATTACK_GROUPS}))

    @property
    def configurations(self) -> dict[str, AttackConfiguration]:
        """Every attack configuration by its name."""
        return dict(self._configurations)

    def configuration(self, name: str) -> AttackConfiguration:
        """Return the attack configuration of a name.

        Raises:
            ValueError: There is none.
        """
        if name not in self._configurations:
            raise ValueError(f"no attack configuration is called {name!r}; there are {list(self._configurations)}")
        return self._configurations[name]

    def correct(self, name: str, sigma: float | None) -> np.ndarray:
        """Return correctness per image and noise draw.

        Args:
            name: Name of an attack configuration.
            sigma: The defense's sigma in units of 0..255 pixels; `None` is the defense switched off.

        Returns:
            Booleans of shape `(images, draws)`, for the first so many images of the report. There is one draw where
            equal images get equal answers.

        Raises:
            ValueError: There is no such attack configuration, or it was not measured with this sigma.
        """
        predictions = self.predictions(name, sigma)
        return predictions == self.labels(len(predictions))[:, None]

    def predictions(self, name: str, sigma: float | None) -> np.ndarray:
        """Return the predicted classes; see [`Measurements.correct`]."""
        return np.array([record["predictions"][sigma_key(sigma)] for record in self._measured(name, sigma)])

    def scores(self, name: str, sigma: float | None) -> np.ndarray:
        """Return what the attacker chooses by: share of wrong answers and mean margin, shape `(images, 2)`."""
        return np.array([record["scores"][sigma_key(sigma)] for record in self._measured(name, sigma)])

    def num_taken_over(self, name: str) -> int:
        """Return how many images an attack left out, as an earlier one had broken them; see [`Runner`]."""
        self.configuration(name)
        return sum(BROKEN_BY in record for record in self._records[name])

    def labels(self, num_images: int) -> np.ndarray:
        """Return the true classes of the first images."""
        return np.array([image["label"] for image in self.images[:num_images]])

    def _measured(self, name: str, sigma: float | None) -> list[dict[str, Any]]:
        sigmas = self.configuration(name).defense_sigmas
        if sigma not in sigmas:
            raise ValueError(f"{name!r} was measured with sigma {[*map(sigma_key, sigmas)]}, not {sigma_key(sigma)}")
        return self._records[name]

    @property
    def rows(self) -> list[Row]:
        """The accuracies under every attack configuration, at every sigma with which it was measured."""
        return [self.row(one.name, sigma) for one in self._configurations.values() for sigma in one.defense_sigmas]

    def row(self, name: str, sigma: float | None) -> Row:
        """Return the accuracies under one attack configuration at one sigma of the defense.

        Raises:
            ValueError: There is no such attack configuration, or it was not measured with this sigma.
        """
        key = (name, sigma)
        if key not in self._rows:
            self._rows[key] = self._row_of(self.configuration(name), sigma, self.predictions(name, sigma))
        return self._rows[key]

    def _row_of(self, configuration: AttackConfiguration, sigma: float | None, predictions: np.ndarray) -> Row:
        """Return the accuracies of predictions of shape `(images, draws)`."""
        num_images, num_draws = predictions.shape
        accuracies = measure(predictions, self.labels(num_images))
        knows_noise = configuration.fixed_noise and CLEAN_NOISE_KNOWN in self._configurations
        twin = CLEAN_NOISE_KNOWN if knows_noise else CLEAN
        clean = self.predictions(twin, sigma)
        if configuration.name == twin:
            clean_accuracies = accuracies
        elif num_images == len(clean):
            base = self.row(twin, sigma)
            clean_accuracies = (base.accuracy, base.worst_of_10, base.majority_of_11)
        else:
            clean_accuracies = measure(clean[:num_images], self.labels(num_images))
        return Row(
            configuration.name,
            configuration.group,
            configuration.attack_sigma,
            sigma,
            configuration.eps,
            configuration.norm,
            configuration.fixed_noise,
            num_images,
            num_draws,
            *accuracies,
            *clean_accuracies,
            seconds=float(sum(record["seconds"] for record in self._records.get(configuration.name, ()))),
        )

    def strongest(self, sigma: float | None, eps: float | None = None, comparable: bool = False) -> Strongest:
        """Combine attacks: on each image the attacker uses the one that works best there.

        The attacker chooses by `scores`: first the share of wrong answers, then the mean margin, both measured on
        noise draws of their own. What counts are the predictions, made on draws that took no part in the choice. Had
        the same draws served for both, the luckiest draws would win, and the more attacks there are, the worse even a
        defense that withstands all of them would look. The price is that a choice by few draws is not always right, so
        that one of the attacks may leave less on all images than the combination. Both are attacks that can be made,
        so accuracy is no higher than the lower figure; the report names it. (The lower of the two is not taken for the
        figure itself: the lowest of many is low by chance.)

        Args:
            sigma: Sigma of the defense in units of 0..255 pixels; `None` is the defense switched off.
            eps: Radius in units of 0..255 pixels; the main one if left out.
            comparable: Only attacks that were made for every sigma alike. Most attacks are made for the main sigma, so
                with all of them it looks weaker than others that were merely attacked less.

        Returns:
            Accuracies over the images of the headline attack. Attacks on fewer images, attacks that know the noise,
            and checks are left out.

        Raises:
            ValueError: No attack was measured with this sigma and eps.
        """
        eps = self.settings["eps"] if eps is None else eps
        key = (sigma, eps, comparable)
        if key not in self._strongest:
            self._strongest[key] = self._find_strongest(sigma, eps, comparable)
        return self._strongest[key]

    def _find_strongest(self, sigma: float | None, eps: float, comparable: bool) -> Strongest:
        norm = self.settings["norm"]
        candidates = [
            one
            for one in self._configurations.values()
            if one.group in ATTACK_GROUPS
            and not one.fixed_noise
            and (one.norm, one.eps) == (norm, eps)
            and sigma in one.defense_sigmas
        ]
        if comparable:
            candidates = treating_all_alike(candidates, self.sigmas)
        if not candidates:
            raise ValueError(
                f"no attack was measured with sigma {sigma_key(sigma)} and eps {eps:g}; there are the sigmas"
                f" {[sigma_key(one) for one in self.sigmas]} and the eps {list(self.radii)}"
            )
        predictions = {one.name: self.predictions(one.name, sigma) for one in candidates}
        scores = {name: self.scores(name, sigma) for name in predictions}
        num_images = len(predictions.get(HEADLINE, max(predictions.values(), key=len)))
        names = [name for name, own in predictions.items() if len(own) >= num_images]
        chosen = [max(names, key=lambda name: tuple(scores[name][index])) for index in range(num_images)]
        kept = np.array([predictions[name][index] for index, name in enumerate(chosen)])
        combined = AttackConfiguration(STRONGEST, "combined", STRONGEST, eps, num_images, sigma, (sigma,), norm=norm)
        row = self._row_of(combined, sigma, kept)
        return Strongest(row, tuple(names), tuple(chosen), kept == self.labels(num_images)[:, None])

    @property
    def has_attacks(self) -> bool:
        """Tell whether there is an attack at the main eps and sigma."""
        try:
            self.strongest(self.settings["sigma"])
        except ValueError:
            return False
        return True

    def chance(self, sigma: float | None, num_images: int | None = None) -> float:
        """Return the clean accuracy that says nothing: that of guessing.

        It is what the same predictions would reach if they had nothing to do with the images (the chance agreement of
        Cohen's kappa), so that a model that calls all images alike is at chance on any images; at least one over the
        number of classes.

        Args:
            sigma: Sigma of the defense in units of 0..255 pixels; `None` is the defense switched off.
            num_images: How many of the first images; all if left out.
        """
        predictions = self.predictions(CLEAN, sigma)[:num_images]
        labels = self.labels(len(predictions))
        agreement = sum((predictions == label).mean() * (labels == label).mean() for label in np.unique(labels))
        return max(float(agreement), 1 / len(self.classes) if self.classes else 0.0)

    def is_above_chance(self, sigma: float | None, num_images: int | None = None) -> bool:
        """Tell whether the 99 % interval of the clean accuracy is above [`Measurements.chance`].

        Without this, accuracies under attack say nothing: there is too little that an attack could take.
        """
        correct = self.correct(CLEAN, sigma)[:num_images]
        return mean_accuracy(correct, confidence=0.99).low > self.chance(sigma, num_images)

    def eps_curve(self, sigma: float | None) -> list[Row]:
        """Return the accuracies under the headline attack from small to large eps, at the sigma it was made for.

        The large eps of the checks, which is measured on fewer images, is the last; the unbounded one is left out.
        """
        found: dict[float, Row] = {}
        for one in self._configurations.values():
            if (
                (one.attack, one.gradient, one.fixed_noise, one.source) == ("eot_pgd", "full", False, None)
                and one.attack_sigma == sigma
                and sigma in one.defense_sigmas
                and one.name not in (FEW_STEPS, UNBOUNDED, OFF_LARGE)
                # An attack by name has options of its own; that of a check has fewer images than that of a grid.
                and not one.name.endswith(DEFAULT_OPTIONS)
                and (one.eps not in found or one.num_images > found[one.eps].num_images)
            ):
                found[one.eps] = self.row(one.name, sigma)
        return [found[eps] for eps in sorted(found)]

    def trade_off(self) -> list[TradeOff]:
        """Return clean accuracy, and accuracy under the strongest attack at the main eps, for every sigma."""
        rows = [self.strongest(sigma, comparable=True).row for sigma in self.sigmas]
        return [TradeOff(row.defense_sigma, row.clean, row.accuracy) for row in rows]

    def recommend_sigma(self, min_clean_accuracy: float = 0.0) -> SigmaChoice:
        """Return the sigma with the highest robust accuracy, of those that keep enough clean accuracy.

        Sigmas are compared at the main eps under the attacks that were made for all of them alike; see
        [`Measurements.strongest`]. The choice is made on the images that the figures are measured on, which favors
        the winner a little: for an unbiased figure evaluate the chosen sigma on other images.

        Args:
            min_clean_accuracy: Least accuracy without an attack, in [0, 1].

        Returns:
            The sigma with the highest robust accuracy, of equals the one with the higher clean accuracy.

        Raises:
            ValueError: `min_clean_accuracy` is out of range, or no sigma reaches it.
        """
        if not 0 <= min_clean_accuracy <= 1:
            raise ValueError(f"min_clean_accuracy must be in [0, 1], got {min_clean_accuracy!r}")
        points = self.trade_off()
        allowed = [point for point in points if point.clean.mean >= min_clean_accuracy]
        if not allowed:
            best = max(points, key=lambda point: point.clean.mean)
            raise ValueError(
                f"no sigma has a clean accuracy of at least {min_clean_accuracy:g}: the highest is"
                f" {best.clean.mean:.4g}, of sigma {sigma_key(best.sigma)}"
            )
        winner = max(allowed, key=lambda point: (point.robust.mean, point.clean.mean))
        own = self.strongest(winner.sigma, comparable=True).correct
        gains = {
            point.sigma: paired_difference(own, self.strongest(point.sigma, comparable=True).correct)
            for point in points
            if point.sigma != winner.sigma
        }
        close = tuple(one.sigma for one in allowed if one.sigma in gains and gains[one.sigma].includes_zero)
        return SigmaChoice(winner.sigma, winner.clean, winner.robust, close, gains.get(None))

    def knee(self) -> TradeOff | None:
        """Return the sigma beyond which robustness becomes expensive.

        Of the sigmas that no other beats in both accuracies, with either accuracy scaled to [0, 1], it is the one
        farthest above the straight line between the two ends (the knee of Satopaa et al. 2011, *Finding a "Kneedle" in
        a haystack*, without smoothing). It is chosen on the images that the figures are measured on, and with few
        images its place is uncertain.

        Returns:
            The knee; `None` if fewer than three sigmas are unbeaten, or none is above the line.
        """
        return find_knee(self.trade_off())
