# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Makes the card of a folder from the files in it: no number on a card is typed by hand."""

import json
from collections.abc import Mapping, Sequence
from difflib import unified_diff
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from .. import __version__
from ..model.configuration_nim import NIMConfig
from ..model.image_processing_nim import NIMImageProcessor
from ..utils.text_table import render_table
from . import texts
from .card_results import NO_CLASSIFIER, SCRIPTS, Evaluation, read_evaluation
from .content import read_content
from .remote_code import config_with_code, image_processor_with_code, to_json


INPUTS = "card.json"
LICENSE = "apache-2.0"
_FIELDS = {
    "name",
    "summary",
    "results",
    "plans",
    "training_data",
    "training_dataset",
    "hub_dataset",
    "limits",
    "model",
    "license",
    "base_model",
}


def read_inputs(folder: str | Path) -> dict[str, Any]:
    """The content of a folder's `card.json`.

    Raises:
        ValueError: There is none, or it is no mapping of the fields that [`write_card`] takes.
    """
    path = Path(folder) / INPUTS
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {INPUTS}, from which its card is made; transformers_nim.cards.write_card writes it"
        )
    inputs = read_content(path)
    unknown = sorted(inputs.keys() - _FIELDS)
    if unknown or not {"name", "summary"} <= inputs.keys():
        raise ValueError(f"{path} must have name and summary, and may have {sorted(_FIELDS)}; unknown: {unknown}")
    for name in ("results", "plans", "limits"):
        value = inputs.get(name, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise ValueError(f"{path}: {name} must be a list of strings, got {value!r}")
    return inputs


def card_files(folder: str | Path, with_code: bool | None = None) -> dict[str, str]:
    """Everything in a folder that is generated, by path; nothing is written.

    Args:
        folder: With `card.json`, the result files that it names, and `config.json` unless it names a `model`.
        with_code: Whether the checkpoint carries its code; by default, whether it does now.

    Returns:
        `README.md`, for measurements on a data set of the Hub `.eval_results/*.yaml`, and, if `card.json` names a
        `model`, `config.json` and `preprocessor_config.json`.

    Raises:
        ValueError: `card.json` or a file that it names is missing, incomplete or of no known kind.
    """
    folder = Path(folder)
    inputs = read_inputs(folder)
    if with_code is None:
        with_code = (folder / "modeling_nim.py").is_file()
    files: dict[str, str] = {}
    if "model" in inputs:
        files = _model_files(inputs["model"], with_code)
        config = json.loads(files["config.json"])
    else:
        config = _plain(_read(folder, "config.json"))
    results = {name: _read(folder, name) for name in inputs.get("results", [])}
    evaluations = {name: read_evaluation(content, f"{folder / name}") for name, content in results.items()}
    plans = [_read(folder, name) for name in inputs.get("plans", [])]
    for name, plan in zip(inputs.get("plans", []), plans):
        if not plan["plans"]:
            raise ValueError(f"{folder / name} has no plans; examples/plan_run.py --output_file writes them")
    # First that of the model itself, then those of what it started from: the files' order, but pretraining last.
    trainings = {name: content for name, content in results.items() if "task" in content}
    trainings = dict(sorted(trainings.items(), key=lambda item: item[1]["task"] == "pretraining"))
    training = next(iter(trainings.values()), None)
    if config.get("classifier_config") and not inputs.get("license"):
        # Whoever made that classifier chose its license, and it need not be ours.
        raise ValueError(
            f"{folder} holds a classifier that was made elsewhere ({config['classifier_config'].get('model_type')}):"
            f" {INPUTS} must have the license of the whole: transformers_nim.cards.write_card(folder, license=...),"
            ' with an identifier of the Hub such as "apache-2.0", "mit" or "other"'
        )
    kind = _kind(config, training)
    hub_datasets = _hub_datasets(inputs, evaluations)
    files["README.md"] = _card(inputs, config, kind, evaluations, plans, trainings, hub_datasets, with_code)
    for name, dataset in hub_datasets.items():
        if evaluations[name].figures:
            # Two files may have one name in two folders.
            path = f".eval_results/{'-'.join(Path(name).with_suffix('').parts)}.yaml"
            if path in files:
                raise ValueError(f"two result files of {folder} would be written to {path}, {name} is one; rename it")
            files[path] = _eval_results(evaluations[name], dataset)
    return files


def write_card(folder: str | Path, **inputs: Any) -> Path:
    """Writes `card.json`, and from it and the files that it names `README.md` and all else that is generated.

    Args:
        folder: A checkpoint.
        inputs: Fields of `card.json`, in place of those that it has: `name`; `summary`, a sentence that says what the
            model is; `results`, names of result files in the folder; `plans`, names of files that
            `examples/plan_run.py --output_file` has written; `training_data`, in words; `training_dataset`, where
            these data are on the Hub; `hub_dataset`, where the data of the results are on the Hub: a mapping from
            result files to names, or one name if all results are of the same data; `limits`, further sentences;
            `license`, an identifier of the Hub, which must be given if the classifier is not one of this package
            (otherwise `"apache-2.0"` by default); `base_model`, names on the Hub of what it was made from; and
            `model`, for a folder whose configs are generated and that has no weights yet: `{"size": ...,
            "architecture": ..., "overrides": {...}}`.

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
    """How the generated files of a folder differ from what its inputs give, as a unified diff; empty if they agree.

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


def count_parameters(config: Mapping[str, Any]) -> int:
    """Parameters of the model that a `config.json` describes; no memory is taken."""
    import torch

    from ..model import modeling_nim

    cls = getattr(modeling_nim, (config.get("architectures") or ["NIMForPreTraining"])[0])
    with torch.device("meta"):
        model = cls(NIMConfig.from_dict(dict(config)))
    return sum(parameter.numel() for parameter in model.parameters())


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{path} is missing, and the card of {folder} is made from it")
    return read_content(path)


def _model_files(model: Mapping[str, Any], with_code: bool) -> dict[str, str]:
    config = NIMConfig.from_size(model["size"], architectures=[model["architecture"]], **model.get("overrides", {}))
    # Without what depends on the versions that are installed, and without names such as LABEL_7.
    content = config.to_diff_dict()
    for name in ("transformers_version", "dtype", "_name_or_path", "id2label", "label2id"):
        content.pop(name, None)
    if "num_labels" in model.get("overrides", {}):
        content["num_labels"] = model["overrides"]["num_labels"]
    processor = NIMImageProcessor.from_config(config).to_dict()
    processor = {name: value for name, value in processor.items() if value is not None}
    if with_code:
        content, processor = config_with_code(content), image_processor_with_code(processor)
    return {"config.json": to_json(content), "preprocessor_config.json": to_json(_plain(processor))}


def _plain(value: Any) -> Any:
    """What JSON can hold, of the settings of an image processor."""
    return json.loads(json.dumps(value, default=lambda x: dict(x) if isinstance(x, Mapping) else vars(x)))


def _style(training: Mapping[str, Any] | None) -> str:
    """What a classifier without a defense was trained on, which decides what can be said of it."""
    arguments = training["arguments"] if training else {}
    if arguments.get("adversarial_steps"):
        return "adversarial"
    return {"clean": "plain", "noisy": "noisy"}.get(str(arguments.get("train_on")), "unknown")


def _attack(training: Mapping[str, Any]) -> str:
    """The attack of adversarial training, in words."""
    arguments = training["arguments"]
    noisy = ", on images with noise" if arguments.get("train_on") == "noisy" else ""
    steps = arguments["adversarial_steps"]
    length = f"{steps} step{'s' if steps > 1 else ''}"
    return f"PGD of {length}, Linf, eps {arguments['adversarial_eps']:g}/255{noisy}"


def _kind(config: Mapping[str, Any], training: Mapping[str, Any] | None) -> str:
    architecture = (config.get("architectures") or ["NIMForPreTraining"])[0]
    if architecture == "NIMForRobustImageClassification":
        return "defended"
    if architecture == "NIMForImageClassification":
        return "undefended"
    return "masked" if training and training["arguments"].get("pretext") == "mae" else "pretraining"


def _card(
    inputs: Mapping[str, Any],
    config: Mapping[str, Any],
    kind: str,
    evaluations: Mapping[str, Evaluation],
    plans: Sequence[Mapping[str, Any]],
    trainings: Mapping[str, Mapping[str, Any]],
    hub_datasets: Mapping[str, str],
    with_code: bool,
) -> str:
    training = next(iter(trainings.values()), None)
    is_attacked = any(evaluation.is_attack for evaluation in evaluations.values())
    intended = texts.INTENDED[_style(training) if kind == "undefended" else kind]
    defense = NIMConfig.from_dict(dict(config)).defense_sigma
    sigma = "" if defense is None else ', sigma="config"'
    if defense is not None and defense["type"] == "constant":
        sigma = f", sigma={defense['value']:g}"
    usage = [texts.USAGE_WITHOUT_WEIGHTS] if "model" in inputs else []
    usage.append(texts.USAGE[kind].format(name=inputs["name"], sigma=sigma))
    usage += [texts.USAGE_OFF] if kind == "defended" and defense is None else []
    foreign = config.get("classifier_config")
    if foreign:
        usage.append(texts.FOREIGN.format(kind=foreign["model_type"], license=inputs["license"]) + _origin(inputs))
    usage += [texts.USAGE_WITH_CODE.format(version=__version__)] if with_code else []
    measured = "\n\n".join(f"### {evaluation.title}\n\n{evaluation.text}" for evaluation in evaluations.values())
    sections = {
        "": inputs["summary"],
        "Weights": "\n\n".join([texts.NO_WEIGHTS, *(_command(plan) for plan in plans)]) if "model" in inputs else "",
        "Use": "\n\n".join(usage),
        "Intended use": intended.format(within=texts.WITHIN[is_attacked]),
        "Evaluation": measured or "\n\n".join(["Nothing was measured.", texts.PROTOCOL.get(kind, "")]).strip(),
        "Training": _training(inputs, trainings),
        "Cost": _cost(config, kind, plans),
        "Limits": _limits(inputs, config, kind, evaluations, training),
        "Citation": texts.CITATION,
    }
    is_classifier = kind in ("defended", "undefended")
    data = ModelCardData(
        model_name=inputs["name"],
        license=inputs.get("license") or LICENSE,
        base_model=inputs.get("base_model"),
        library_name="transformers",
        pipeline_tag="image-classification" if is_classifier else "image-feature-extraction",
        tags=["transformers-nim", *(["adversarial-robustness"] if is_attacked else []), "nim"],
        # Readers take these for what the model has learned from.
        datasets=[inputs["training_dataset"]] if inputs.get("training_dataset") else None,
        eval_results=[
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
        or None,
    )
    text = "\n\n".join(f"## {title}\n\n{body}" if title else body for title, body in sections.items() if body)
    card = ModelCard.from_template(data, template_str=texts.TEMPLATE, model_name=inputs["name"], sections=text)
    return f"{str(card).rstrip()}\n"


def _origin(inputs: Mapping[str, Any]) -> str:
    bases = inputs.get("base_model") or []
    names = ", ".join(f"`{name}`" for name in ([bases] if isinstance(bases, str) else bases))
    return f" Made from: {names}." if names else ""


def _hub_datasets(inputs: Mapping[str, Any], evaluations: Mapping[str, Evaluation]) -> dict[str, str]:
    """By result file, the name on the Hub of the data that it was measured on, where it is given."""
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


def _training(inputs: Mapping[str, Any], trainings: Mapping[str, Mapping[str, Any]]) -> str:
    parts: list[str] = []
    for name, training in trainings.items():
        script = SCRIPTS[training["task"]]
        is_attacked = bool(training["arguments"].get("adversarial_steps"))
        images = f"attacked images ({_attack(training)})" if is_attacked else "images"
        parts.append(
            f"{'Before that, trained' if parts else 'Trained'} on {training['dataset']} for {training['steps']:,}"
            f" updates of {training['total_batch_size']} {images} by `{script}` of transformers-nim"
            f" {training['versions']['transformers_nim']}; all arguments are in `{name}`."
        )
    if inputs.get("training_data"):
        parts.append(f"Training data: {inputs['training_data']}")
    return "\n\n".join(parts)


def _command(plan: Mapping[str, Any]) -> str:
    one = next(iter(row for row in plan["plans"] if row["name"] == plan["shown"]), plan["plans"][0])
    return f"```bash\n{one['command']}\n```"


def _cost(config: Mapping[str, Any], kind: str, plans: Sequence[Mapping[str, Any]]) -> str:
    parameters = f"{count_parameters(config) / 1e6:.3g} M parameters."
    passes = {
        "defended": _defended_cost(config),
        "undefended": "A prediction takes 1 forward pass.",
        "pretraining": "Denoising an image takes 1 forward pass through encoder and decoder.",
        "masked": "Features of an image take 1 forward pass through the encoder.",
    }[kind]
    parts = [f"{parameters} {passes}"]
    for plan in plans:
        rows = [[row["name"], f"{row['hours']:,.1f}", f"{row['gpu_hours']:,.0f}"] for row in plan["plans"]]
        parts.append(
            f"Expected for {plan['task']} ({plan['num_train_epochs']:g} epochs of {plan['num_images']:,} images,"
            f" {plan['step_flops'] / 1e9:,.1f} GFLOPs per image and update), from counted FLOPs and the assumption"
            f" that GPUs reach {plan['utilization']:.0%} of their peak; not measured on GPUs:"
        )
        parts.append(render_table(["GPUs", "hours", "GPU hours"], rows))
    return "\n\n".join(parts)


def _defended_cost(config: Mapping[str, Any]) -> str:
    """Forward passes of a prediction, in words."""
    draws, sigma = config.get("num_samples", 1), NIMConfig.from_dict(dict(config)).defense_sigma
    foreign = config.get("classifier_config")
    classifier = f"the classifier ({foreign['model_type']})" if foreign else "the classifier"
    both = f"a forward pass through the denoiser (encoder and decoder) and one through {classifier}"
    if sigma is None:
        return (
            f"A prediction takes 1 forward pass, through {classifier}, until a `sigma` is given. It then takes, for"
            f" each noise draw ({draws}, if no other `num_samples` is given), a forward pass through the denoiser"
            " (encoder and decoder) and one through the classifier."
        )
    if sigma == {"type": "constant", "value": 0}:
        # Without noise all draws would be equal, and the model makes but one.
        return f"A prediction takes {both}: 2 forward passes. No noise is drawn."
    drawn = "1 noise draw, that is" if draws == 1 else f"{draws} noise draws, each"
    return (
        f"A prediction takes {drawn} {both}: {2 * draws} forward passes. A certificate takes as many draws as are"
        " asked for, n0 + n."
    )


def _limits(
    inputs: Mapping[str, Any],
    config: Mapping[str, Any],
    kind: str,
    evaluations: Mapping[str, Evaluation],
    training: Mapping[str, Any] | None,
) -> str:
    style = _style(training) if kind == "undefended" else kind
    against = list(texts.LIMITS[style])
    if style == "adversarial" and training is not None:
        against = [limit.format(attack=_attack(training)) for limit in against]
    if kind == "defended" and config.get("norm_pix_loss") and config.get("patch_statistics") == "input":
        against.append(texts.LEAKS)
    # That a denoiser classifies nothing is no limit of the classifier which was made of it.
    unsaid = {NO_CLASSIFIER} if kind in ("defended", "undefended") else set()
    measured = dict.fromkeys(limit for evaluation in evaluations.values() for limit in evaluation.limits)
    parts = [*inputs.get("limits", []), *(limit for limit in measured if limit not in unsaid)]
    if not evaluations:
        untrained = "no model of this configuration has been trained or attacked yet."
        parts.append(f"Nothing is claimed: {untrained if 'model' in inputs else 'nothing was measured.'}")
    if kind == "defended":
        parts.append("What the defense does not protect against:")
    points = "\n".join(f"- {point}" for point in against)
    return "\n\n".join([*parts, *([points] if points else [])])


def _eval_results(evaluation: Evaluation, dataset: str) -> str:
    """The Hub's file of results; the identifier of a task is that of the metric."""
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
