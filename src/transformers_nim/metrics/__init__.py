# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Metrics for `evaluate`, shipped as the folders that `evaluate.load` expects.

Each folder holds a module of the same name and is complete: uploaded to the Hub, it is a metric Space.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.extras import require


if TYPE_CHECKING:
    import evaluate


__all__ = ["load_metric", "metric_path"]


def metric_path(name: str) -> str:
    """Return the folder of a metric of this package, for `evaluate.load`.

    Args:
        name: `"robust_accuracy"` or `"certified_accuracy"`.

    Raises:
        ValueError: There is no such metric.

    Example:

    ```python
    >>> from transformers_nim.metrics import metric_path

    >>> metric_path("robust_accuracy").endswith("robust_accuracy")
    True
    ```
    """
    root = Path(__file__).parent
    known = sorted(path.stem for path in root.glob("*/*.py") if path.stem == path.parent.name)
    if name not in known:
        raise ValueError(f"unknown metric {name!r}; this package has {', '.join(map(repr, known))}")
    return str(root / name)


def load_metric(name: str, **options: Any) -> "evaluate.EvaluationModule":
    """Load a metric of this package from its own files, without a network.

    `evaluate` copies the metric's module into the cache of Hugging Face (`HF_HOME`) and imports it from there.

    Args:
        name: See [`metric_path`].
        options: Passed to `evaluate.load`, such as `keep_in_memory`, or `num_process`, `process_id` and
            `experiment_id` when several processes share an evaluation.

    Raises:
        ValueError: There is no such metric.
        ImportError: `evaluate` is not installed.

    Example:

    ```python
    >>> from transformers_nim.metrics import load_metric

    >>> metric = load_metric("robust_accuracy", keep_in_memory=True)
    >>> metric.add_batch(predictions=[[1, 1], [0, 2]], references=[1, 2])
    >>> metric.compute()["accuracy"]
    0.75
    ```
    """
    path = metric_path(name)
    return require("evaluate").load(path, **options)
