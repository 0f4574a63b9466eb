# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The vote of several draws is measured as the defense."""

import importlib.util
from pathlib import Path

from conftest import save_with_processor, tiny_model
from training_runs import save_digits


def benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "votes.py"
    spec = importlib.util.spec_from_file_location("votes_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines_of(folder):
    files = folder.glob("*/records*.jsonl")
    return sorted((path.parent.name, line) for path in files for line in path.read_text().splitlines())


def test_each_sigma_and_number_of_draws_is_a_row(tmp_path, capsys):
    names = {index: f"digit {index}" for index in range(10)}
    model = tiny_model(num_labels=10, id2label=names, label2id={name: index for index, name in names.items()})
    data = save_digits(tmp_path / "data", num_train=20, num_validation=8)
    arguments = ["--model_name_or_path", save_with_processor(model, tmp_path / "model"), "--dataset_name", data]
    arguments += ["--output_dir", str(tmp_path / "records"), "--num_images", "4", "--sigmas", "60"]
    arguments += ["--votes", "1", "3", "--steps", "2", "--num_draws", "2"]
    benchmark().main(arguments)
    table = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["60", "1"], ["60", "3"]]
    records = lines_of(tmp_path / "records")
    assert {folder for folder, _ in records} == {"sigma-60-votes-1", "sigma-60-votes-3"}
    # A finished measurement is read again, not repeated.
    benchmark().main(arguments)
    assert capsys.readouterr().out == table
    assert lines_of(tmp_path / "records") == records
