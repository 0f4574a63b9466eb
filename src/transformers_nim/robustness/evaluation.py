# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Evaluate a model under the attacks of a suite: what the command line and [`evaluate_robustness`] have in common."""

import hashlib
import importlib.util
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..attacks.geometry import DEFAULT_EPS, warn_of_eps
from ..attacks.registry import attack_options
from ..data.evaluation_set import EvaluationSet
from ..model.checks_nim import check_counts, check_vote
from ..model.noise import FROM_CONFIG, ConstantSigma, parse_sigma, warn_of_sigma
from ..model.pixel_classifier_nim import PixelClassifier
from ..utils.extras import check_installed, require
from ..utils.interruption import catch_postponed
from ..utils.records import OTHER_MODEL, SETTINGS, replace_file, start_records
from ..utils.seeding import forked_rng
from ..utils.text_table import plural, sigma_key
from ..utils.versions import VERSION, package_versions
from .checks import make_report
from .classifiers import Subject, has_defense, model_hash
from .protocol import (
    AUTO_PRECISION,
    BUDGETS,
    FULL_PRECISION,
    HEADLINE,
    OLDER_SETTINGS,
    PRECISIONS,
    AttackBudget,
    AttackConfiguration,
    ModelFacts,
    Suite,
    check_radii,
    fast_precision,
)
from .report import RobustnessReport
from .runner import KEYS, Runner, kept_path
from .time_budget import Pace, fit_suite, seconds_per_pass


PLAN = "plan.json"
_MEANINGS = {
    "images": "the images, their labels or their order are others",
    "model_hash": OTHER_MODEL,
    "cells": "the attacks or their options are others, as in another version of this package",
}
DEFAULT_SIGMAS: tuple[float | None, ...] = (None, 0.0, 25.0, 50.0, 75.0, 100.0)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options of an evaluation; all that does not need the model is checked when this is made.

    Attributes:
        output_dir: Folder of the records.
        suite: `"quick"` or `"full"`.
        norm: `"Linf"` or `"L2"`.
        eps: The main radius in units of 0..255 pixels; by default 8 for Linf and 128 for L2.
        eps_grid: Further radii; by default a quarter and a half of the main one.
        sigma: The main sigma of the defense in units of 0..255 pixels, `None` for off, `"config"` for the model's.
        sigmas: Further ones, for the trade-off curve; `DEFAULT_SIGMAS` by default.
        num_samples: Noise draws that a prediction combines; the config's by default.
        vote: How it combines them, `"mean"` or `"majority"`; the config's by default.
        attacks: Further attacks by their registered names.
        budget: Fields of the suite's [`AttackBudget`] to change.
        attack_precision: `"fp32"` or `"bf16"`: the precision in which attacks on a random defense search; `"auto"` is
            bfloat16 where the device computes in it, see [`fast_precision`].
        with_autoattack: Whether the full suite runs AutoAttack where pyautoattack is installed.
        budget_minutes: Time there is; what has to be cut for it is said.
        resume: Whether to go on with the records in `output_dir`, if there are any.
        seed: Seed of attacks and noise.
        batch_size: Images attacked together.
        rows_per_pass: Noisy images per pass through the network; one of the settings, as rounding depends on it.
        labels_by_index: Whether classes of surrogates and data have the model's numbers, whatever their names are.

    Raises:
        ValueError: A choice is unknown or a number out of range.
    """

    output_dir: str | Path
    suite: str = "quick"
    norm: str = "Linf"
    eps: float = None  # type: ignore[assignment]  # a number as soon as it is made
    eps_grid: Sequence[float] | None = None
    sigma: float | str | None = FROM_CONFIG
    sigmas: Sequence[float | None] | None = None
    num_samples: int | None = None
    vote: str | None = None
    attacks: Sequence[str] = ()
    budget: Mapping[str, int] = field(default_factory=dict)
    attack_precision: str = FULL_PRECISION
    with_autoattack: bool = True
    budget_minutes: float | None = None
    resume: bool = False
    seed: int = 0
    batch_size: int = 8
    rows_per_pass: int = 64
    labels_by_index: bool = False

    def __post_init__(self) -> None:
        choices = {"suite": list(BUDGETS), "norm": ["Linf", "L2"], "attack_precision": [AUTO_PRECISION, *PRECISIONS]}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        check_counts(num_samples=self.num_samples, batch_size=self.batch_size, rows_per_pass=self.rows_per_pass)
        check_vote(self.vote)
        for sigma in [*(self.sigmas or ()), *([] if self.sigma == FROM_CONFIG else [self.sigma])]:
            if sigma is not None and (isinstance(sigma, (bool, str)) or not 0 <= sigma < math.inf):
                raise ValueError(f"sigma must be a number of at least 0, or None for off, got {sigma!r}")
            if sigma is not None:
                warn_of_sigma(sigma)
        if self.budget_minutes is not None and not self.budget_minutes > 0:
            raise ValueError(f"budget_minutes must be positive, got {self.budget_minutes!r}")
        if self.eps is None:
            object.__setattr__(self, "eps", DEFAULT_EPS[self.norm])
        check_radii(self.norm, (self.eps, *self.radii))
        for radius in (self.eps, *(self.eps_grid or ())):
            warn_of_eps(self.norm, radius)
        for name in self.attacks:
            attack_options(name)
            if name.startswith("torchattacks_"):
                check_installed("torchattacks")
            if name in ("transfer", "autoattack"):
                instead = "surrogates" if name == "transfer" else 'suite "full"'
                raise ValueError(f"the attack {name} is run by {instead}; leave it out of attacks")
            if name.startswith("torchattacks_") and self.norm != "Linf":
                raise ValueError(f"the attack {name} knows the norm Linf alone, not {self.norm}")
        fields = asdict(BUDGETS[self.suite])
        unknown = sorted(self.budget.keys() - fields.keys())
        if unknown:
            raise ValueError(f"budget has no field {unknown[0]!r}; it has {list(fields)}")
        self.attack_budget()

    def attack_budget(self) -> AttackBudget:
        """Return the suite's attack budget with the changes."""
        return replace(BUDGETS[self.suite], **self.budget)

    @property
    def radii(self) -> list[float]:
        """Further radii in units of 0..255 pixels."""
        return [self.eps / 4, self.eps / 2] if self.eps_grid is None else list(self.eps_grid)


@dataclass(frozen=True)
class Defense:
    """The defense as it is evaluated.

    Attributes:
        sigma: The main sigma in units of 0..255 pixels; `None` for a model without one.
        sigmas: Further ones.
        num_samples: Noise draws that a prediction combines.
        vote: How it combines them.
    """

    sigma: float | None
    sigmas: list[float | None]
    num_samples: int
    vote: str

    @classmethod
    def of(cls, subject: Subject, options: EvaluationOptions) -> "Defense":
        """Return the defense of a model under the options.

        Raises:
            ValueError: An option is for another kind of model, or the config's sigma is random.
        """
        sigma = _main_sigma(subject, options)
        sigmas: list[float | None] = []
        if has_defense(subject.model):
            # The defense switched off belongs to every grid: a check needs it.
            sigmas = list(dict.fromkeys([*(DEFAULT_SIGMAS if options.sigmas is None else options.sigmas), None]))
        given = {
            **subject.options,
            **{k: v for k in ("num_samples", "vote") if (v := getattr(options, k)) is not None},
        }
        if not any([sigma, *sigmas]):
            if options.num_samples not in (None, 1) or options.vote is not None:
                raise ValueError("num_samples and vote are for a defense with a sigma above 0: leave them out")
            return cls(sigma, sigmas, 1, "mean")
        num_samples = given.get("num_samples", subject.config.num_samples)
        if num_samples == 1:
            if options.vote is not None:
                raise ValueError(f"vote {options.vote} is for several noise draws per prediction: add num_samples, 16")
            return cls(sigma, sigmas, 1, "mean")
        return cls(sigma, sigmas, num_samples, given.get("vote", subject.config.vote))

    @property
    def predictor(self) -> dict[str, Any]:
        """Options of a classifier whose predictions are those of the defense."""
        return {"num_samples": self.num_samples, "vote": self.vote}


def _main_sigma(subject: Subject, options: EvaluationOptions) -> float | None:
    """Return the sigma that the headline is about."""
    if not has_defense(subject.model):
        if options.sigma not in (FROM_CONFIG, None):
            raise ValueError(f"{type(subject.core).__name__} has no defense: leave sigma ({options.sigma:g}) out")
        return None
    if not isinstance(options.sigma, str):
        return options.sigma
    sigma = subject.options.get("sigma", FROM_CONFIG)
    sigma = subject.config.defense_sigma if isinstance(sigma, str) else sigma
    if sigma is None:
        return None
    found = parse_sigma(sigma)
    if not isinstance(found, ConstantSigma):
        raise ValueError(f"the model's defense_sigma is random ({sigma}); choose a sigma, for example 50")
    return float(found.value)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: a model, images and how it is done.

    Attributes:
        subject: The model.
        images: The images.
        options: How it is done.
        surrogates: Other models by name, from which attacks are transferred.
        workers: The processes that share the work: an `Accelerator`, or a [`OneProcess`].
        say: Called with sentences that tell how it goes.
        show_progress: Whether to show a bar.
    """

    subject: Subject
    images: EvaluationSet
    options: EvaluationOptions
    surrogates: Mapping[str, Subject]
    workers: Any
    say: Callable[[str], object]
    show_progress: bool = True

    def run(self) -> RobustnessReport | None:
        """Run all attacks and return the report on the main process, `None` on others.

        Raises:
            ValueError: The options do not fit the model, the images, the time or the records.
        """
        started = time.perf_counter()
        options, workers = self.options, self.workers
        defense = Defense.of(self.subject, options)
        suite, cut = self._fit_time(self._suite(defense), defense)
        defense = replace(defense, sigmas=list(suite.model.sigmas))
        images = replace(self.images, images=self.images.images[: suite.budget.num_images])
        planned = suite.configurations()
        precision = self._precision(planned)
        settings = self._settings(defense, images, suite.budget, precision)
        if workers.is_main_process:
            measured = {**settings, "cells": [one.to_dict() for one in planned]}
            start_records(
                options.output_dir, measured, KEYS, options.resume, OLDER_SETTINGS, names=("dataset", "model"),
                meanings=_MEANINGS,
            )  # fmt: skip
        workers.wait_for_everyone()
        catch_postponed()
        for sentence in cut:
            self.say(f"cut: {sentence}")
        run = self._attack(defense, images, planned, suite.budget, precision)
        if not workers.is_main_process:
            return None
        report = make_report(
            options.output_dir, settings, run, images, left_out=self._left_out(run, planned), cut=cut,
            versions=package_versions() | {"threads": str(torch.get_num_threads())},
            wall_time=time.perf_counter() - started, classes=self._classes,
        )  # fmt: skip
        report.samples = self._samples(report, defense)
        return report

    @property
    def _first_pixels(self) -> torch.Tensor:
        return self.images.read(self.images.images[0].row).to(self.workers.device)

    @property
    def _num_classes(self) -> int:
        config = self.subject.config
        if getattr(config, "num_labels", None):
            return config.num_labels
        with torch.no_grad():
            return self.subject.plain()(self._first_pixels[None]).shape[-1]

    @property
    def _classes(self) -> list[str]:
        """Names of the classes; without any, their numbers."""
        number, names = self._num_classes, getattr(self.subject.config, "id2label", None)
        if names:
            return [str(names[index]) for index in range(len(names))]
        has_names = len(self.images.label_names) == number
        return list(self.images.label_names) if has_names else [str(index) for index in range(number)]

    def check_surrogates(self) -> None:
        """Check that surrogates have the model's classes and take its images.

        Raises:
            ValueError: One does not.
        """
        for name, surrogate in self.surrogates.items():
            self._check_surrogate(name, surrogate)

    def _check_surrogate(self, name: str, surrogate: Subject) -> None:
        config, theirs = self.subject.config, surrogate.config
        if config is not None and theirs is not None:
            is_same = theirs.num_labels == config.num_labels and (
                theirs.label2id == config.label2id or self.options.labels_by_index
            )
            if not is_same:
                raise ValueError(
                    f"the classes of the surrogate {name} are not those of the model; if they are, in the same order,"
                    " choose labels_by_index"
                )
        try:
            with torch.no_grad(), forked_rng(self.workers.device):
                number = surrogate.plain()(self._first_pixels[None]).shape[-1]
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"the surrogate {name} does not take the model's images: {error}") from error
        if number != self._num_classes:
            raise ValueError(f"the surrogate {name} has {number} classes, the model {self._num_classes}")

    def _suite(self, defense: Defense) -> Suite:
        """Return the attacks.

        Raises:
            ValueError: A label is none of the model's classes; or attacks on a random defense shall search in another
                precision, and there is no such attack.
        """
        options, first = self.options, self._first_pixels
        number = self._num_classes
        wrong = [image.label for image in self.images.images if not 0 <= image.label < number]
        if wrong:
            raise ValueError(f"labels must be class numbers from 0 to {number - 1}, got {wrong[0]}")
        has_patches = self._make(defense)(defense.sigma, "full", False).patch_shape is not None
        facts = ModelFacts(
            defense.sigma, defense.sigmas, self._num_classes, has_patches, tuple(first.shape), self.subject.own_noise
        )
        has_autoattack = options.with_autoattack and importlib.util.find_spec("pyautoattack") is not None
        suite = Suite(
            options.suite, replace(options.attack_budget(), num_images=len(self.images.images)), facts, options.eps,
            options.radii, options.norm, list(self.surrogates), options.rows_per_pass,
            has_autoattack and options.suite == "full", options.attacks, defense.num_samples,
            [name for name, surrogate in self.surrogates.items() if surrogate.own_noise is not None],
        )  # fmt: skip
        is_random = not all(one.is_deterministic for one in suite.configurations())
        if PRECISIONS.get(options.attack_precision) is not None and not is_random:
            advice = ", or choose a sigma above 0" if has_defense(self.subject.model) else ""
            raise ValueError(
                f"attack_precision {options.attack_precision} is for attacks on a random defense, and here is none"
                f" (sigma {sigma_key(defense.sigma)}): leave it out{advice}"
            )
        return suite

    def _precision(self, configurations: Sequence[AttackConfiguration]) -> str:
        """Return the precision in which attacks on the random defense search; there may be none."""
        asked, is_random = self.options.attack_precision, not all(one.is_deterministic for one in configurations)
        if asked != AUTO_PRECISION:
            return asked
        path = Path(self.options.output_dir) / SETTINGS
        if self.options.resume and path.exists():
            # Perhaps on another device: what has been begun goes on.
            return str(json.loads(path.read_text()).get("attack_precision", FULL_PRECISION))
        return fast_precision(self.workers.device) if is_random else FULL_PRECISION

    def _make(self, defense: Defense, **options: Any) -> Callable[[float | None, str, bool], PixelClassifier]:
        return self.subject.maker(self.options.seed, **{**defense.predictor, **options})

    def _fit_time(self, suite: Suite, defense: Defense) -> tuple[Suite, list[str]]:
        """Cut the suite to the time there is, as the main process measures it.

        Returns:
            The suite, and sentences that say what was cut.

        Raises:
            ValueError: Nothing fits, or the run that goes on was made for another time or budget.
        """
        options, workers = self.options, self.workers
        if options.budget_minutes is None:
            return suite, []
        path = Path(options.output_dir) / PLAN
        asked = {"strength": asdict(suite.budget), "minutes": options.budget_minutes}
        if workers.is_main_process and not (options.resume and path.exists()):
            self.say("timing the model, to see what fits into the time")
            num_draws = suite.budget.num_draws
            # Models with noise of their own are attacked image by image.
            rows = options.rows_per_pass if self.subject.own_noise is None else num_draws
            half = PRECISIONS[self._precision(suite.configurations())]

            def timed(**own: Any) -> float:
                make = self.subject.maker(options.seed, **own)
                return seconds_per_pass(make, self._first_pixels, defense.sigma, num_draws, rows)

            judge = timed()
            search = judge if half is None else timed(autocast_dtype=half)
            fitting, cut = fit_suite(suite, Pace(search, judge), workers.num_processes, options.budget_minutes)
            grids = {"eps_grid": list(fitting.eps_grid), "sigmas": list(fitting.model.sigmas)}
            path.parent.mkdir(parents=True, exist_ok=True)
            plan = {"asked": asked, "strength": asdict(fitting.budget), **grids, "cut": cut}
            replace_file(path, json.dumps(plan, indent=2) + "\n")
        workers.wait_for_everyone()
        # Timing differs from start to start: a run that goes on keeps its plan.
        plan = json.loads(path.read_text())
        if plan["asked"] != asked:
            raise ValueError(
                f"{path} was made for {plan['asked']}, and this run asks for {asked}; resume with the options of then,"
                " or choose another output_dir"
            )
        # Plans of earlier versions have no grids.
        facts = replace(suite.model, sigmas=plan.get("sigmas", suite.model.sigmas))
        grid = plan.get("eps_grid", suite.eps_grid)
        return replace(suite, budget=AttackBudget(**plan["strength"]), model=facts, eps_grid=grid), plan["cut"]

    def _settings(
        self, defense: Defense, images: EvaluationSet, budget: AttackBudget, precision: str
    ) -> dict[str, Any]:
        """Return what decides the figures; a run goes on with the same settings only."""
        options, source, model = self.options, self.images.source, self.subject.model
        identities = json.dumps([asdict(image) for image in images.images])
        classifier = self.subject.plain()
        settings = {
            "dataset_config_name": source.get("dataset_config_name"),
            "split": source["split"],
            "labels_by_index": source["labels_by_index"],
            **{name: getattr(options, name) for name in ("suite", "norm", "eps", "seed", "rows_per_pass")},
            "attack_precision": precision,
            "model": self.subject.name,
            "model_class": type(self.subject.core).__name__,
            "model_hash": model_hash(model),
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "dataset": source["dataset"],
            "dataset_images": source["dataset_images"],
            "sigma": defense.sigma,
            "sigmas": list(dict.fromkeys([defense.sigma, *defense.sigmas])),
            **defense.predictor,
            "surrogates": {name: model_hash(surrogate.model) for name, surrogate in self.surrogates.items()},
            "images": hashlib.sha256(identities.encode()).hexdigest()[:16],
            "image_processor": {"mean": classifier.image_mean, "std": classifier.image_std},
            "torch": torch.__version__,
            "transformers_nim": VERSION,
            "strength": asdict(budget),
            "dtype": "float32",
        }
        if self.subject.own_noise is not None:
            settings["own_noise"] = self.subject.own_noise
        return settings

    def _attack(
        self, defense: Defense, images: EvaluationSet, planned: Sequence[AttackConfiguration], budget: AttackBudget,
        precision: str,
    ) -> list[AttackConfiguration]:  # fmt: skip
        """Run this process's pending attacks. Return the attack configurations that were run."""
        options, workers = self.options, self.workers
        surrogates = {name: surrogate.plain() for name, surrogate in self.surrogates.items()}
        runner = Runner(
            self._make(defense), images, planned, budget, options.output_dir, options.seed, surrogates,
            keep_images=[HEADLINE], batch_size=options.batch_size, rows_per_pass=options.rows_per_pass,
            device=workers.device, process_index=workers.process_index, num_processes=workers.num_processes,
            wait=workers.wait_for_everyone,
            make_approximate=self._make(defense, autocast_dtype=PRECISIONS[precision]),
            num_samples=defense.num_samples, make_probed=self._make(defense, vote="mean"),
        )  # fmt: skip
        pending = runner.pending_cost()
        self.say(
            f"{plural(len(images.images), 'image')}, {plural(len(planned), 'attack configuration')},"
            f" {plural(workers.num_processes, 'process')} on {workers.device.type};"
            f" {plural(round(pending), 'pass')} to do (one with a gradient counts as two)"
        )
        with require("tqdm.auto").tqdm(
            total=math.floor(pending) + 1,
            desc="attacking, this process's part" if workers.num_processes > 1 else "attacking",
            unit="pass",
            unit_scale=True,
            disable=not (self.show_progress and workers.is_main_process),
        ) as bar:
            runner.on_cost = bar.update
            return runner.run()

    def _left_out(self, run: Sequence[AttackConfiguration], planned: Sequence[AttackConfiguration]) -> list[str]:
        """Return sentences that name the parts of the protocol that were not run, and why."""
        names = [one.name for one in planned if one not in run]
        sentences = [f"{name}: no gradient flows from the logits to the pixels" for name in names]
        is_random = bool(planned[0].attack_sigma) or planned[0].is_random
        if not self.surrogates:
            sentences.append(
                "transfer from an undefended and from an adversarially trained model: none was given as surrogates"
            )
        if self.subject.random is False:
            sentences.append(
                "a search for noise of the model's own: that it has none (random=False) is taken on trust"
            )
        if self.subject.own_noise == "unseeded":
            sentences.append("attacks that know the noise: no seed of torch's global generator repeats the model's")
        elif not any(one.attack == "autoattack" for one in planned):
            what = "AutoAttack on fixed noise, as a cross-check" if is_random else "AutoAttack itself"
            sentences.append(f"{what}: only the full suite runs it, where pyautoattack is installed")
        if not is_random and not any(one.attack == "apgd_t" for one in planned):
            sentences.append("APGD-T: its loss needs at least 4 classes")
        if self.options.suite == "quick":
            sentences.append("the whole grid of sigma and eps, three restarts and 100 steps: the full suite runs them")
        missing = self.images.undecodable
        if missing:
            sentences.append(f"{len(missing)} images that cannot be decoded: rows {list(missing[:10])}")
        return sentences

    def _samples(self, report: RobustnessReport, defense: Defense, num: int = 6) -> list[dict[str, Any]]:
        """Return images before and after the headline attack, noisy and denoised, for [`plot_examples`]."""
        classifier = self._make(defense)(defense.sigma, "full", False)
        samples: list[dict[str, Any]] = []
        for record in report.images:
            path = kept_path(self.options.output_dir, HEADLINE, record["row"])
            if not path.exists() or len(samples) == num:
                continue
            adversarial = torch.from_numpy(np.load(path, allow_pickle=False))
            shown = {"clean": self.images.read(record["row"]), "adversarial": adversarial}
            sample: dict[str, Any] = {"row": record["row"], "label": record["label"], "noisy": None, "denoised": None}
            for name in list(shown):
                pixels = shown[name][None].to(self.workers.device)
                generator = torch.Generator(pixels.device).manual_seed(record["row"])
                with torch.no_grad():
                    sample[f"{name}_prediction"] = int(classifier(pixels, [generator]).argmax())
            if defense.sigma is not None:
                generator = torch.Generator(pixels.device).manual_seed(record["row"])
                shown["noisy"], shown["denoised"] = (one[0] for one in classifier.purify(pixels, [generator]))
            sample |= {name: one.cpu().clamp(0, 1).permute(1, 2, 0).numpy() for name, one in shown.items()}
            samples.append(sample)
        return samples
