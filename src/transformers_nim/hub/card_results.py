# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Read result files for cards, one reader for each kind of file."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..robustness import Accuracy, RobustnessReport, render
from ..robustness.certificates import certificate_table
from ..robustness.measurements import ATTACK_GROUPS, STRONGEST
from ..robustness.protocol import CLEAN, FULL_PRECISION, HEADLINE, AttackConfiguration
from ..utils.text_table import percent, render_table


class Content(dict[str, Any]):
    """A mapping that says where it is from if a field is missing.

    Attributes:
        where: The file, and the way through it to this mapping.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__({key: _named(value, where, key) for key, value in values.items()})
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"{self.where} has no field {key!r}, only {sorted(self)}; write the file anew")


def _named(value: Any, where: str, key: Any) -> Any:
    inside = f"{where}: {key}" if ": " not in where else f"{where}.{key}"
    if isinstance(value, Mapping):
        return Content(value, inside)
    if isinstance(value, list):
        return [_named(one, where, f"{key}[{index}]") for index, one in enumerate(value)]
    return value


def read_content(path: Path) -> Content:
    """Read a JSON file so that whatever is wrong with it is said with its name.

    Raises:
        ValueError: It is no JSON, or holds something else than a mapping.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of fields, but holds a {type(values).__name__}: {values!r:.80}")
    return Content(values, str(path))


@dataclass(frozen=True)
class Figure:
    """One number that was measured, for the metadata of a card.

    Attributes:
        metric: Name of the metric, such as `"accuracy"`.
        name: What was measured, in words.
        value: The number; a share in [0, 1].
        arguments: How it was measured: `norm`, `eps_255`, `steps`, `num_draws` (of EOT), `restarts`, `sigma`, the
            interval `low` to `high`, whatever applies. eps and sigma are in units of 0..255 pixels.
    """

    metric: str
    name: str
    value: float
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Content of a card that one result file gives.

    Attributes:
        title: Heading.
        dataset: Name of the data.
        split: Its split, if that is known.
        text: Protocol and table, in Markdown.
        figures: Its numbers, for the metadata.
        limits: What the numbers do not say, in sentences.
        is_attack: Whether the model was attacked or certified, so that the numbers tell about robustness.
    """

    title: str
    dataset: str
    split: str | None
    text: str
    figures: list[Figure] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    is_attack: bool = True


# What figures of training mean, by the beginning of their names.
_LEGENDS = {
    "psnr": "`psnr` is the peak signal-to-noise ratio of denoised images in dB, `psnr_noisy` that of the noisy images"
    " they were made of; sigma is the scale of the noise in units of 0..255 pixels.",
    "accuracy": "Accuracies are in percent, from one noise draw per image, with a 95 % interval. sigma is the scale of"
    " the noise that was added to the images, in units of 0..255 pixels; `off` is without noise, and without the"
    " defense if there is one.",
}
_UNATTACKED = (
    "The figures of training were measured without an attack. They say nothing about robustness, which has to be"
    " measured by attacking the model."
)
NO_CLASSIFIER = (
    "No classifier, and nothing is known of its robustness: that of a classifier made of it has to be measured by"
    " attacking it."
)


# What has written a result file of training, by task.
COMMANDS = {"pretraining": "transformers-nim pretrain", "finetuning": "transformers-nim finetune"}


def read_training(results: Mapping[str, Any]) -> Evaluation:
    """Read `all_results.json`, which the training commands write."""
    if results["task"] not in COMMANDS:
        raise ValueError(f"task must be one of {sorted(COMMANDS)}, got {results['task']!r}")
    metrics, split = results["metrics"], results["validation_split"]
    measured = f"Measured on {results['num_eval_images']} {split} images of {results['dataset']}."
    if results["best"] is not None and split.startswith("test"):
        measured += " The model in `best/` was chosen by them, so its figures are no test."
    legends = [text for start, text in _LEGENDS.items() if any(name.startswith(start) for name in metrics)]
    accuracies = [name for name in metrics if "accuracy" in name and not name.endswith(("_low", "_high"))]
    rows = {name: percent(metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"]) for name in accuracies}
    rows |= {name: f"{value:.4g}" for name, value in metrics.items() if "accuracy" not in name}
    table = render_table(["figure", "value"], list(rows.items()))
    text = "\n\n".join([measured, table, *legends]) if metrics else "Nothing was measured."
    figures = [
        Figure(
            "accuracy",
            f"accuracy without attack, {name.removeprefix('accuracy_').replace('_', ' ')}",
            metrics[name],
            {"low": metrics[f"{name}_low"], "high": metrics[f"{name}_high"]},
        )
        for name in accuracies
    ]
    limits = [_UNATTACKED if results["task"] == "finetuning" else NO_CLASSIFIER]
    title = {"pretraining": "While pretraining", "finetuning": "While fine-tuning"}[results["task"]]
    return Evaluation(title, results["dataset"], split, text, figures, limits, is_attack=False)


def read_certificates(results: Mapping[str, Any]) -> Evaluation:
    """Read the `results.json` of `transformers-nim certify`."""
    settings = results["settings"]
    options = {name: settings[name] for name in ("n0", "n", "alpha", "sequential")}
    figures = [
        Figure(
            "certified_accuracy",
            f"certified accuracy, sigma {curve['sigma']:g}, radius {radius:g}",
            curve["certified_accuracy"][index],
            {
                "norm": "L2",
                "radius": radius,
                "sigma": curve["sigma"],
                "low": curve["certified_accuracy_low"][index],
                "high": curve["certified_accuracy_high"][index],
                **options,
            },
        )
        for curve in results["curves"]
        for index, radius in enumerate(curve["radii"])
    ]
    text = f"{results['protocol']}\n\n{certificate_table(results['curves'])}"
    limits = [
        "The certificates hold for the vote under noise, by `predict_smoothed` or `certify`, in the L2 norm and at the"
        " radii of the table; single draws have none."
    ]
    return Evaluation("Certificates", settings["dataset"], settings["split"], text, figures, limits)


_ALL_KINDS = ("accuracy", "worst_of_10", "majority_of_11")


def _is_for_metadata(attack: AttackConfiguration, eps: float, sigma: float | None) -> bool:
    """Return whether a figure of this attack configuration is one of the model.

    Those of checks are figures of the attacks, and clean twins serve as their comparison.
    """
    if attack.group == "clean":
        return attack.name == CLEAN
    if attack.group == "grid":
        # Attackers who assume another sigma are in the matrix.
        return attack.eps != eps and attack.attack_sigma == sigma
    return attack.group in ATTACK_GROUPS and attack.eps == eps


def read_robustness(results: Mapping[str, Any]) -> Evaluation:
    """Read the `results.json` of `transformers-nim evaluate`."""
    report = RobustnessReport.from_dict(results)
    settings = report.settings
    sigma = settings["sigma"]
    figures: list[Figure] = []
    # The defense as it is meant to be used; the tables have the others.
    for row in [*(row for row in report.rows if row.defense_sigma == sigma), report.strongest(sigma).row]:
        attack = report.configurations.get(row.configuration)
        if attack is not None and not _is_for_metadata(attack, settings["eps"], sigma):
            continue
        how = {"norm": row.norm, "eps_255": row.eps, "sigma": sigma, "seed": settings["seed"]}
        if attack is not None:
            how |= {
                name: attack.options[name] for name in ("steps", "num_draws", "restarts") if name in attack.options
            }
            how |= {"attack_sigma": attack.attack_sigma} if attack.eps else {}
        if sigma and settings["num_samples"] > 1:
            how |= {"num_samples": settings["num_samples"], "vote": settings["vote"]}
        if row.eps and settings["attack_precision"] != FULL_PRECISION and not (attack and attack.is_deterministic):
            how["attack_precision"] = settings["attack_precision"]
        for kind in _ALL_KINDS if row.configuration in (HEADLINE, STRONGEST) else _ALL_KINDS[:1]:
            accuracy: Accuracy = getattr(row, kind)
            bounds = {"low": accuracy.low, "high": accuracy.high, "num_images": row.num_images}
            name = f"{kind.replace('_', ' ')}, {row.configuration}"
            figures.append(Figure("accuracy", name, accuracy.mean, {**how, **bounds}))
    failed = [check["name"] for check in report.checks if check["passed"] is False]
    limits = []
    if failed:
        limits.append(f"**Unreliable**: of the sanity checks of the attacks, these failed: {', '.join(failed)}.")
    # Its headings are below that of the evaluation.
    text = render(report).replace("### ", "#### ")
    return Evaluation("Robustness", settings["dataset"], settings["split"], text, figures, limits)


# The fields by which a kind of result file is recognized, and its reader.
READERS: list[tuple[set[str], Callable[[Mapping[str, Any]], Evaluation]]] = [
    ({"task", "metrics", "validation_split"}, read_training),
    ({"curves", "settings", "protocol"}, read_certificates),
    ({"cells", "records", "settings", "checks"}, read_robustness),
]


def read_evaluation(results: Mapping[str, Any], name: str = "the result file") -> Evaluation:
    """Return what a card says of a result file.

    Args:
        results: Its content.
        name: Its name, for errors.

    Raises:
        ValueError: It is of no known kind, or not complete.
    """
    for fields, read in READERS:
        if fields <= results.keys():
            try:
                return read(Content(results, name))
            except KeyError as error:
                # Reports of robustness are read elsewhere.
                raise ValueError(f"{name} has no field {error}; write the file anew") from error
            except (AttributeError, IndexError, TypeError) as error:
                raise ValueError(f"{name} cannot be read, a field is of the wrong kind: {error}") from error
            except ValueError as error:
                if str(error).startswith(name):
                    raise
                raise ValueError(f"{name}: {error}") from error
    known = "; ".join(", ".join(sorted(fields)) for fields, _ in READERS)
    raise ValueError(f"{name} has the fields {sorted(results)}, which are of no known kind; known are {known}")
