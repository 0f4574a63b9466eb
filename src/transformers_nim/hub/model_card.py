# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Make the card of a folder from the files in it: no number on a card is typed by hand."""

import json
from collections.abc import Mapping
from difflib import unified_diff
from pathlib import Path
from typing import Any

import jinja2
import torch
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from ..model import modeling_nim
from ..model.configuration_nim import NIMConfig
from ..model.loading_nim import saved_class
from ..training.compute import describe_compute
from ..utils.records import describe_change
from ..utils.text_table import plural
from ..utils.versions import VERSION
from .card_results import COMMANDS, NO_CLASSIFIER, Evaluation, read_content, read_evaluation


INPUTS = "card.json"
LICENSE = "apache-2.0"
TEMPLATE = Path(__file__).with_name("model_card_template.md")
_FIELDS = {
    "name",
    "summary",
    "results",
    "training_data",
    "training_dataset",
    "hub_dataset",
    "limits",
    "license",
    "base_model",
}


def read_inputs(folder: str | Path) -> dict[str, Any]:
    """Return the content of a folder's `card.json`.

    Raises:
        ValueError: There is none, or it is no mapping of the fields that [`write_card`] takes.
    """
    path = Path(folder) / INPUTS
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {INPUTS}, from which its card is made; transformers_nim.hub.write_card writes it"
        )
    inputs = read_content(path)
    unknown = sorted(inputs.keys() - _FIELDS)
    if unknown or not {"name", "summary"} <= inputs.keys():
        raise ValueError(f"{path} must have name and summary, and may have {sorted(_FIELDS)}; unknown: {unknown}")
    for name in ("results", "limits"):
        value = inputs.get(name, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise ValueError(f"{path}: {name} must be a list of strings, got {value!r}")
    return inputs


def card_files(folder: str | Path, with_code: bool | None = None) -> dict[str, str]:
    """Generate the card of a folder, and what goes with it; nothing is written.

    Args:
        folder: With `config.json`, `card.json` and the result files that it names.
        with_code: Whether the checkpoint carries its code; by default, whether it does now.

    Returns:
        By path, `README.md` and, for measurements on a data set of the Hub, `.eval_results/*.yaml`.

    Raises:
        ValueError: `card.json` or a file that it names is missing, incomplete or of no known kind.
    """
    folder = Path(folder)
    inputs = read_inputs(folder)
    if with_code is None:
        with_code = (folder / "modeling_nim.py").is_file()
    config = read_config(folder)
    results = {name: _read(folder, name) for name in inputs.get("results", [])}
    evaluations = {name: read_evaluation(content, f"{folder / name}") for name, content in results.items()}
    # First that of the model itself, then those of what it started from: the files' order, but pretraining last.
    trainings = {name: content for name, content in results.items() if "task" in content}
    trainings = dict(sorted(trainings.items(), key=lambda item: item[1]["task"] == "pretraining"))
    if config.get("classifier_config") and not inputs.get("license"):
        # Whoever made that classifier chose its license, and it need not be ours.
        raise ValueError(
            f"{folder} holds a classifier that was made elsewhere ({config['classifier_config'].get('model_type')}):"
            f" {INPUTS} must have the license of the whole: transformers_nim.hub.write_card(folder, license=...),"
            ' with an identifier of the Hub such as "apache-2.0", "mit" or "other"'
        )
    hub_datasets = _hub_datasets(inputs, evaluations)
    facts = _facts(inputs, config, evaluations, trainings)
    metadata = _metadata(inputs, facts, evaluations, hub_datasets)
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    text = template.render(card_data=metadata.to_yaml(), with_code=with_code, version=VERSION, **facts)
    files = {"README.md": f"{text.rstrip()}\n"}
    for name, dataset in hub_datasets.items():
        if evaluations[name].figures:
            # Two files may have one name in two folders.
            path = f".eval_results/{'-'.join(Path(name).with_suffix('').parts)}.yaml"
            if path in files:
                raise ValueError(f"two result files of {folder} would be written to {path}, {name} is one; rename it")
            files[path] = _eval_results(evaluations[name], dataset)
    return files


def write_card(folder: str | Path, **inputs: Any) -> Path:
    """Write `card.json`, and from it and the files that it names `README.md` and all else that is generated.

    Args:
        folder: A checkpoint.
        inputs: Fields of `card.json`, in place of those that it has:

            - `name`;
            - `summary`, a sentence that says what the model is;
            - `results`, names of result files in the folder;
            - `training_data`, in words;
            - `training_dataset`, where these data are on the Hub;
            - `hub_dataset`, where the data of the results are on the Hub: a mapping from result files to names, or
              one name if all results are of the same data;
            - `limits`, further sentences;
            - `license`, an identifier of the Hub, or None for none, as training leaves it: whoever has the training
              images chooses one. It must be given if the classifier is not one of this package, and
              is `"apache-2.0"` otherwise;
            - `base_model`, names on the Hub of what it was made from.

    Returns:
        Path of the card.

    Raises:
        ValueError: See [`card_files`].
    """
    folder = Path(folder)
    if inputs:
        old = read_content(folder / INPUTS) if (folder / INPUTS).is_file() else {}
        (folder / INPUTS).write_text(json.dumps({**old, **inputs}, indent=2) + "\n", encoding="utf-8")
    for name, text in card_files(folder).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder / "README.md"


def card_differences(folder: str | Path) -> str:
    """Compare the generated files of a folder with what its inputs give.

    Returns:
        A unified diff; empty if they agree.

    Raises:
        ValueError: See [`card_files`].
    """
    folder = Path(folder)
    lines: list[str] = []
    for name, text in card_files(folder).items():
        path = folder / name
        there = path.read_text(encoding="utf-8") if path.is_file() else ""
        lines += unified_diff(
            there.splitlines(keepends=True), text.splitlines(keepends=True), f"{name} (there)", f"{name} (generated)"
        )
    return "".join(lines)


def empty_model(config: Mapping[str, Any]) -> torch.nn.Module:
    """Return the model that a `config.json` describes, without contents: no memory is taken.

    Raises:
        AttributeError, LookupError, RuntimeError, TypeError, ValueError: It describes no model of this package.
    """
    cls = getattr(modeling_nim, architecture_of(config))
    with torch.device("meta"):
        return cls(NIMConfig.from_dict(dict(config)))


def read_config(folder: Path) -> dict[str, Any]:
    """Return a folder's `config.json`, with the class of its weights if it names no class of this package.

    Raises:
        OSError: Its weights are damaged.
        ValueError: It has no config, or one that describes no model of this package.
    """
    config = json.loads(json.dumps(_read(folder, "config.json")))
    named = config.get("architectures") or []
    if config.get("model_type") == "nim" and not any(name in modeling_nim.__all__ for name in named):
        kind = saved_class(folder, {}, NIMConfig.from_dict(dict(config)))
        config["architectures"] = [kind] if kind else []
    return config


def architecture_of(config: Mapping[str, Any]) -> str:
    """Return the name of the class that a `config.json` names, or that of pretraining if it names none."""
    return (config.get("architectures") or ["NIMForPreTraining"])[0]


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{path} is missing, and the card of {folder} is made from it")
    return read_content(path)


def _facts(
    inputs: Mapping[str, Any],
    config: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation],
    trainings: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what the template needs to know."""
    training = next(iter(trainings.values()), None)
    kind = _kind(config, training)
    style = _style(training) if kind == "undefended" else None
    model_config = NIMConfig.from_dict(dict(config))
    noise, sigma_argument = _noise(model_config.defense_sigma)
    bases = inputs.get("base_model") or []
    # That a denoiser classifies nothing is no limit of the classifier which was made of it.
    unsaid = {NO_CLASSIFIER} if kind in ("defended", "undefended") else set()
    measured = dict.fromkeys(limit for evaluation in evaluations.values() for limit in evaluation.limits)
    return {
        "name": inputs["name"],
        "summary": inputs["summary"],
        "license": inputs.get("license", LICENSE),
        "base_models": [f"`{name}`" for name in ([bases] if isinstance(bases, str) else bases)],
        "kind": kind,
        "style": style,
        "attack": _attack(training) if training is not None and style == "adversarial" else None,
        "noise": noise,
        "sigma_argument": sigma_argument,
        "num_samples": model_config.num_samples,
        "classifier": (config.get("classifier_config") or {}).get("model_type"),
        "has_denoiser": model_config.denoise,
        "is_leaking": model_config.leaks_patch_statistics,
        "is_attacked": any(evaluation.is_attack for evaluation in evaluations.values()),
        "evaluations": list(evaluations.values()),
        "trainings": [_trained(name, training) for name, training in trainings.items()],
        "training_data": inputs.get("training_data"),
        "parameters": f"{sum(parameter.numel() for parameter in empty_model(config).parameters()) / 1e6:.3g}",
        "limits": [*inputs.get("limits", []), *(limit for limit in measured if limit not in unsaid)],
    }


def _kind(config: Mapping[str, Any], training: Mapping[str, Any] | None) -> str:
    kinds = {"NIMForRobustImageClassification": "defended", "NIMForImageClassification": "undefended"}
    is_masked = training is not None and training["arguments"].get("pretext") == "mae"
    return kinds.get(architecture_of(config), "masked" if is_masked else "pretraining")


def _style(training: Mapping[str, Any] | None) -> str:
    """Name what a classifier without a defense was trained on, which decides what can be said of it."""
    arguments = training["arguments"] if training else {}
    if arguments.get("adversarial_steps"):
        return "adversarial"
    return {"clean": "plain", "noisy": "noisy"}.get(str(arguments.get("train_on")), "unknown")


def _attack(training: Mapping[str, Any]) -> str:
    """Describe the attack of adversarial training."""
    arguments = training["arguments"]
    steps, norm = plural(arguments["adversarial_steps"], "step"), arguments.get("adversarial_norm", "Linf")
    # Results of earlier versions have no such argument.
    noise = arguments.get("adversarial_noise")
    under = ""
    if noise is not None and arguments["train_on"] != "clean" and arguments["adversarial_through"] == "defense":
        under = ", under the noise that is trained on" if noise == "shared" else ", under noise of its own"
    elif arguments.get("train_on") == "noisy":
        under = ", on images with noise"
    return f"PGD of {steps}, {norm}, eps {arguments['adversarial_eps']:g}/255{under}"


def _noise(sigma: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return whether the defense is "off", adds "none" or "some" noise, and the pipeline's argument for its sigma."""
    if sigma is None:
        return "off", ""
    # Without noise all draws would be equal, and the model makes but one.
    noise = "none" if sigma == {"type": "constant", "value": 0} else "some"
    return noise, f", sigma={sigma['value']:g}" if sigma["type"] == "constant" else ', sigma="config"'


def _trained(name: str, training: Mapping[str, Any]) -> dict[str, str | None]:
    """Return what a card says of a training, by the name of its result file."""
    is_attacked = bool(training["arguments"].get("adversarial_steps"))
    kind = f"attacked images ({_attack(training)})" if is_attacked else "images"
    draws = training["arguments"].get("num_training_draws", 1)
    kind += f" with {draws} noise draws each" if draws > 1 else ""
    kind += ", the denoiser trained along," if training["arguments"].get("train_denoiser") else ""
    # Results of earlier versions have neither.
    compute, start = training.get("compute"), training.get("start") or {}
    return {
        "file": name,
        "start": start.get("name"),
        "start_license": start.get("license"),
        "compute": f", {describe_compute(compute)}" if compute else "",
        "changes": _changes(training),
        "dataset": training["dataset"],
        "steps": f"{training['steps']:,}",
        "images": f"{training['total_batch_size']} {kind}",
        "script": COMMANDS[training["task"]],
        "version": training["versions"]["transformers_nim"],
    }


def _changes(training: Mapping[str, Any]) -> str:
    """Return in words which settings did not hold throughout."""
    unknown, by_step = training.get("settings_from", 0), dict[int, list[str]]()
    for one in training.get("changes", []):
        by_step.setdefault(one["after_step"], []).append(describe_change(f"`{one['name']}`", one["was"], one["is"]))
    told = [f"after {step:,} updates {', '.join(changes)}" for step, changes in by_step.items()]
    told = [f"The settings changed on the way: {'; '.join(told)}."] if told else []
    if unknown:
        told.insert(0, f"Those of the first {unknown:,} updates are not on record.")
    return "".join(f" {sentence}" for sentence in told)


def _metadata(
    inputs: Mapping[str, Any],
    facts: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation],
    hub_datasets: Mapping[str, str],
) -> ModelCardData:
    """Return the YAML header of a card."""
    is_classifier = facts["kind"] in ("defended", "undefended")
    eval_results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=hub_datasets.get(name) or evaluation.dataset,
            dataset_name=evaluation.dataset,
            dataset_split=evaluation.split,
            metric_type=figure.metric,
            metric_name=figure.name,
            metric_value=figure.value,
            metric_args=figure.arguments,
        )
        for name, evaluation in evaluations.items()
        for figure in evaluation.figures
    ]
    return ModelCardData(
        model_name=inputs["name"],
        license=facts["license"],
        base_model=inputs.get("base_model"),
        library_name="transformers",
        pipeline_tag="image-classification" if is_classifier else "image-feature-extraction",
        tags=["transformers-nim", *(["adversarial-robustness"] if facts["is_attacked"] else []), "nim"],
        # Readers take these for what the model has learned from.
        datasets=[inputs["training_dataset"]] if inputs.get("training_dataset") else None,
        eval_results=eval_results or None,
    )


def _hub_datasets(inputs: Mapping[str, Any], evaluations: Mapping[str, Evaluation]) -> dict[str, str]:
    """Return, by result file, the name on the Hub of the data that it was measured on, where it is given."""
    given = inputs.get("hub_dataset") or {}
    if isinstance(given, str):
        names = {name: evaluation.dataset for name, evaluation in evaluations.items()}
        if len(set(names.values())) > 1:
            raise ValueError(
                f"hub_dataset is {given!r} for all results, but they are of different data: {names}; pass a mapping"
                " from result files to names on the Hub, without those whose data are not there"
            )
        return dict.fromkeys(evaluations, given)
    unknown = sorted(given.keys() - evaluations.keys())
    if unknown:
        raise ValueError(
            f"hub_dataset has {unknown}, which are not among the results {list(evaluations)}; remove them"
        )
    return dict(given)


def _eval_results(evaluation: Evaluation, dataset: str) -> str:
    """Return the Hub's file of results; the identifier of a task is that of the metric."""
    entries = [
        EvalResultEntry(
            dataset_id=dataset,
            task_id=figure.metric,
            value=figure.value,
            notes=f"{figure.name}; " + ", ".join(f"{name}={value}" for name, value in figure.arguments.items()),
        )
        for figure in evaluation.figures
    ]
    return yaml_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
