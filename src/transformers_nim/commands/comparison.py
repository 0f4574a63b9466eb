# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Compare models by the files of their results: what `evaluate --compare` prints."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..hub.card_results import Content, read_content
from ..robustness import RobustnessReport, compare, model_table
from ..robustness.measurements import RESULTS_FILE


def compare_results(paths: Sequence[str | Path]) -> str:
    """Return a table with one row per model; of two models also their paired differences.

    Args:
        paths: Result files of robustness or of certificates, or folders: with a `results.json`, or of a model card
            with result files under other names. Certificates belong to the evaluation of the same model.

    Returns:
        Text that is valid Markdown.

    Raises:
        ValueError: A file holds no results, no file is of robustness, or the evaluations cannot be compared.
    """
    reports: list[RobustnessReport] = []
    certificates: list[Content] = []
    extra_data: dict[str, str] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"{path} is not there; --compare takes result files, or folders with such files")
        found = [RobustnessReport.load(file) for file in _files_with(path, {"cells", "records"})]
        certified = [read_content(file) for file in _files_with(path, {"curves", "settings"})]
        if not found and not certified:
            raise ValueError(f"{path} holds no results of `evaluate` or `certify`")
        reports += found
        certificates += certified
        for report in found:
            extra_data |= _extra_data(path, report)
    if not reports:
        raise ValueError(f"none of {[str(path) for path in paths]} is a report of robustness")
    table = model_table(reports, certificates, extra_data)
    return f"{compare(*reports)}\n\nBoth models:\n\n{table}" if len(reports) == 2 else table


def _files_with(path: Path, fields: set[str]) -> list[Path]:
    """Return the JSON files of a path that hold these fields."""
    files = [path]
    if path.is_dir():
        files = [path / RESULTS_FILE] if (path / RESULTS_FILE).exists() else sorted(path.glob("*.json"))
    return [file for file in files if fields <= read_content(file).keys()]


def _extra_data(path: Path, report: RobustnessReport) -> dict[str, str]:
    """Return whether the model card beside a report names other training data than that of the report, by its hash."""
    card = path / "card.json"
    name = json.loads(card.read_text(encoding="utf-8")).get("training_dataset") if card.exists() else None
    if not name:
        return {}
    is_same = name.rpartition("/")[2] == str(report.settings["dataset"]).rpartition("/")[2]
    return {report.settings["model_hash"]: "no" if is_same else name}
