# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Result files of several models, compared: those of the shipped checkpoints and made-up ones."""

import json
from pathlib import Path

import pytest
from fake_reports import simulated

from transformers_nim.commands.comparison import compare_results


CARDS = Path(__file__).parents[2] / "model_cards"


def test_folders_of_model_cards_with_their_certificates():
    folders = sorted(path for path in CARDS.iterdir() if path.is_dir())
    text = compare_results(folders)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    table = [dict(zip(rows[0], row)) for row in rows[2:]]
    assert {row["model"] for row in table} == {path.name for path in folders}
    assert {row["extra data"] for row in table} == {"no"}
    certified = {row["model"]: row["certified"] for row in table}
    assert {name for name, figure in certified.items() if figure != "-"} == {
        path.name for path in folders if (path / "certificates.json").exists()
    }
    assert "a - b" not in text


def test_two_models_are_compared_as_well(tmp_path):
    paths = [simulated(seed=seed).save(tmp_path / f"{seed}.json") for seed in (0, 1)]
    text = compare_results(paths)
    assert "a - b" in text
    assert "\n\nBoth models:\n\n| model " in text
    assert "a - b" not in compare_results(paths[:1])


def test_what_holds_no_results_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone is not there"):
        compare_results([tmp_path / "gone"])
    (tmp_path / "other.json").write_text(json.dumps({"loss": 1}))
    for path in (tmp_path, tmp_path / "other.json"):
        with pytest.raises(ValueError, match="holds no results"):
            compare_results([path])
    (tmp_path / "results.json").write_text(json.dumps({"curves": [], "settings": {}}))
    with pytest.raises(ValueError, match="is a report of robustness"):
        compare_results([tmp_path])
