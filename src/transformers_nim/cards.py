# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Model cards made from result files: no number on a card is typed by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData


_CITATION = """
## Citation

The method is that of You, Liu, Han and Xu, *Beyond Pretrained Features: Noisy Image Modeling Provides Adversarial
Defense*, NeurIPS 2023, [arXiv 2302.01056](https://arxiv.org/abs/2302.01056).
"""

_TEMPLATE = """---
{{ card_data }}
---

# {{ model_name }}

{{ model_summary }}

## Use

```python
import transformers_nim  # makes transformers know this model
from transformers import pipeline

# The path of this folder, or its name on the Hub.
pipe = pipeline("image-classification", model="{{ model_name }}", sigma={{ sigma }})
```

`sigma` is the scale of the noise that the defense adds before it denoises, in units of 0..255 pixels. 0 denoises
without adding noise, `None` switches the defense off.

## Robustness

{{ protocol }}

{{ table }}

## Limits

{{ limits }}
"""

_TRAINING_TEMPLATE = """---
{{ card_data }}
---

# {{ model_name }}

{{ summary }}

{{ usage }}

## Training

{{ table }}

Trained on {{ dataset }} for {{ steps }} updates of {{ batch }} images by `{{ script }}` of transformers-nim
{{ version }}; all arguments are in `all_results.json`.

## Limits

{{ limits }}
"""

_USAGE = {
    "pretraining": """```python
from transformers_nim import NIMForPreTraining, NIMForRobustImageClassification

denoiser = NIMForPreTraining.from_pretrained("{name}")
# The start of fine-tuning: the denoiser is there, the head is new.
model = NIMForRobustImageClassification.from_pretrained("{name}", num_labels=10)
```""",
    "masked": """```python
from transformers_nim import NIMForImageClassification

# The start of fine-tuning without a defense: the encoder is there, the head is new.
model = NIMForImageClassification.from_pretrained("{name}", num_labels=10)
```""",
    "finetuning": """```python
import transformers_nim  # makes transformers know this model
from transformers import pipeline

pipe = pipeline("image-classification", model="{name}")
```""",
}
_TRAINING_LIMITS = {
    "pretraining": "No classifier, and nothing is known of its robustness: that of a classifier made of it has to be"
    " measured by attacking it.",
    "finetuning": "The figures were measured without an attack. They say nothing about robustness, which has to be"
    " measured by attacking the model.",
}
# What figures mean, by the beginning of their names.
_LEGENDS = {
    "psnr": "`psnr` is the peak signal-to-noise ratio of denoised images in dB, `psnr_noisy` that of the noisy images"
    " they were made of; sigma is the scale of the noise in units of 0..255 pixels.",
    "accuracy": "Accuracies are shares of right predictions, from one noise draw per image, with a 95 % interval from"
    " `low` to `high`. sigma is the scale of the noise that was added to the images, in units of 0..255 pixels; `off`"
    " is without noise, and without the defense if there is one.",
}


def render_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads well in a terminal and is valid Markdown."""
    cells = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        aligned = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        return f"| {' | '.join(aligned)} |"

    rule = [f"{'-' * widths[0]}", *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    return "\n".join([line(cells[0]), f"| {' | '.join(rule)} |", *map(line, cells[1:])])


def write_model_card(
    output_dir: str | Path,
    model_name: str,
    results: Mapping[str, Any],
    table: str,
    model_summary: str,
    limits: str,
    dataset_name: str,
    sigma: float,
) -> Path:
    """Writes `README.md` beside a checkpoint.

    Args:
        output_dir: Folder of the checkpoint.
        model_name: Name of the model.
        results: A result file: `protocol` is a sentence that says how accuracies were measured, and each of `rows` has
            the fields `model`, `sigma`, `attack`, `mean`, `low`, `high` (in percent) and `settings`.
        table: The rows as Markdown.
        model_summary: What the model is.
        limits: What it does not do.
        dataset_name: The data it was evaluated on.
        sigma: The sigma of the example of use.

    Returns:
        Path of the card.
    """
    evaluations = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset_name,
            dataset_name=dataset_name,
            metric_type="accuracy",
            metric_name=f"accuracy in %, {row['model']}, {row['attack']}",
            metric_value=row["mean"],
            metric_args={"sigma": row["sigma"], "low": row["low"], "high": row["high"], **row["settings"]},
        )
        for row in results["rows"]
    ]
    data = ModelCardData(
        model_name=model_name,
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["transformers-nim", "adversarial-robustness", "nim"],
        eval_results=evaluations,
    )
    card = ModelCard.from_template(
        data,
        template_str=_TEMPLATE + _CITATION,
        model_name=model_name,
        model_summary=model_summary,
        protocol=results["protocol"],
        table=table,
        limits=limits,
        sigma=f"{sigma:g}",
    )
    path = Path(output_dir) / "README.md"
    card.save(path)
    return path


def write_training_card(output_dir: str | Path, model_name: str, results: Mapping[str, Any], summary: str) -> Path:
    """Writes `README.md` beside a model that has just been trained.

    Args:
        output_dir: Folder of the model.
        model_name: Its name.
        results: What `all_results.json` holds; see `transformers_nim.training.publish.finish`.
        summary: What the model is.

    Returns:
        Path of the card.
    """
    task, metrics = results["task"], results["metrics"]
    rows = [[name, f"{value:.4g}"] for name, value in metrics.items()]
    split = results["validation_split"]
    measured = f"Measured on {results['num_eval_images']} {split} images of {results['dataset']}."
    if results["best"] is not None and split.startswith("test"):
        measured += " The model in `best/` was chosen by them, so its figures are no test."
    legends = [text for start, text in _LEGENDS.items() if any(name.startswith(start) for name in metrics)]
    table = "Nothing was measured."
    if rows:
        table = "\n\n".join([measured, render_table(["figure", "value"], rows), *legends])
    accuracies = {
        name: value for name, value in metrics.items() if "accuracy" in name and not name.endswith(("_low", "_high"))
    }
    data = ModelCardData(
        model_name=model_name,
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-classification" if task == "finetuning" else "image-feature-extraction",
        tags=["transformers-nim", "nim"],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=results["dataset"],
                dataset_name=results["dataset"],
                dataset_split=split,
                metric_type="accuracy",
                metric_name=f"accuracy without attack, {name.removeprefix('accuracy_').replace('_', ' ')}",
                metric_value=value,
                metric_args={"low": metrics[f"{name}_low"], "high": metrics[f"{name}_high"]},
            )
            for name, value in accuracies.items()
        ]
        or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=_TRAINING_TEMPLATE + _CITATION,
        model_name=model_name,
        summary=summary,
        usage=_USAGE["masked" if results["arguments"].get("pretext") == "mae" else task].format(name=model_name),
        table=table,
        dataset=results["dataset"],
        steps=f"{results['steps']:,}",
        batch=results["total_batch_size"],
        script={"pretraining": "examples/pretrain.py", "finetuning": "examples/finetune.py"}[task],
        version=results["versions"]["transformers_nim"],
        limits=_TRAINING_LIMITS[task],
    )
    path = Path(output_dir) / "README.md"
    card.save(path)
    return path
