# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import RepoCard

from transformers_nim.metrics import load_metric, metric_path
from transformers_nim.metrics.robust_accuracy.robust_accuracy import RobustAccuracy
from transformers_nim.robustness import mean_accuracy


# Of 4 draws, right: 4 (vote won), 3 (won), 2 of 4 against 1 and 1 (won), 2 against 2 (a tie), 1 against 3 (lost), 0.
PREDICTIONS = [[7, 7, 7, 7], [1, 1, 0, 1], [2, 0, 2, 1], [3, 0, 0, 3], [4, 5, 5, 5], [9, 9, 9, 9]]
REFERENCES = [7, 1, 2, 3, 4, 5]
CORRECT = np.array(PREDICTIONS) == np.array(REFERENCES)[:, None]
POINTS = {"accuracy": 12 / 24, "worst_of_draws": 1 / 6, "majority": 3 / 6, "num_images": 6, "num_draws": 4}


@pytest.fixture
def metric():
    return RobustAccuracy(keep_in_memory=True)


def test_known_values(metric):
    results = metric.compute(predictions=PREDICTIONS, references=REFERENCES)
    interval = results.pop("accuracy_low"), results.pop("accuracy_high")
    assert results == pytest.approx(POINTS)
    expected = mean_accuracy(CORRECT)
    assert interval == (expected.low, expected.high)
    assert {type(value) for value in results.values()} == {float, int}


def test_confidence_reaches_the_interval(metric):
    correct = np.random.default_rng(0).random((50, 3)) < 0.7
    intervals = []
    for options in ({}, {"confidence": 0.6}):
        results = metric.compute(predictions=correct, references=[1] * 50, **options)
        expected = mean_accuracy(correct, **options)
        intervals.append((results["accuracy_low"], results["accuracy_high"]))
        assert intervals[-1] == (expected.low, expected.high)
    assert len(set(intervals)) == 2


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_single_classes_are_one_draw(metric, kind):
    predictions, references = [3, 1, 0, 0], [3, 1, 0, 2]
    single = metric.compute(predictions=kind(predictions), references=kind(references))
    as_lists = metric.compute(predictions=kind([[value] for value in predictions]), references=kind(references))
    assert single == as_lists
    assert single["accuracy"] == single["worst_of_draws"] == single["majority"] == 0.75
    assert (single["num_images"], single["num_draws"]) == (4, 1)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_arrays(metric, kind):
    results = metric.compute(predictions=kind(PREDICTIONS), references=kind(REFERENCES))
    assert results == metric.compute(predictions=PREDICTIONS, references=REFERENCES)


@pytest.mark.parametrize("left_out", [[7, 7, 7, 7], [-100] * 4, [0], [], None])
def test_images_are_left_out(metric, left_out):
    """Whatever was predicted for them, and wherever they stand."""
    expected = metric.compute(predictions=PREDICTIONS, references=REFERENCES)
    predictions = [left_out, *PREDICTIONS, left_out]
    assert metric.compute(predictions=predictions, references=[-100, *REFERENCES, -100]) == expected
    flat = metric.compute(predictions=[1, 1, 1], references=[1, -100, 2])
    assert (flat["accuracy"], flat["num_images"]) == (0.5, 2)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([[1, 2], [3]], [1, 3], r"same number of draws.*\[1, 2\]"),
        ([[], []], [1, 3], r"same number of draws.*\[0\]"),
        ([[1, 2], None], [1, 3], "same number of draws"),
        ([[1], [2]], [-100, -100], "no images are left of 2"),
        ([], [], "no images are left of 0"),
        ([[1], [2], [3]], [1, 2], "Mismatch in the number"),
        ([1, 2], [1, 2, 3], "Mismatch in the number"),
        ([1, 2], [], "Mismatch in the number"),
        ([[1], 2], [1, 2], "expected format"),
        ([[0.2, 1.7], [2.0, -1.0]], [1, 0], "predictions must be classes.*0.2"),
        ([1, None], [1, 0], "predictions must be classes"),
        ([1, 0], [1.0, 0.5], "references must be classes.*0.5"),
        ([1, 0], [1, -1], "references must be classes.*at least 0.*-1"),
    ],
)
def test_errors(metric, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=predictions, references=references)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_confidence_out_of_range(metric, confidence):
    with pytest.raises(ValueError, match=f"between 0 and 1, not {confidence}"):
        metric.compute(predictions=[1], references=[1], confidence=confidence)


@pytest.mark.parametrize("keep_in_memory", [True, False])
def test_batches_equal_one_compute(tmp_path, keep_in_memory):
    metric = RobustAccuracy(keep_in_memory=keep_in_memory, cache_dir=str(tmp_path))
    expected = metric.compute(predictions=PREDICTIONS, references=REFERENCES)
    for start, stop in ((0, 1), (1, 4), (4, 4), (4, 6)):
        metric.add_batch(predictions=PREDICTIONS[start:stop], references=REFERENCES[start:stop])
    # A last batch, filled up.
    metric.add_batch(predictions=[[0] * 4] * 2, references=[-100] * 2)
    assert metric.compute() == expected
    for prediction, reference in zip(PREDICTIONS, REFERENCES):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute() == expected
    # Nothing is left from before.
    assert metric.compute(predictions=PREDICTIONS[:2], references=REFERENCES[:2])["num_images"] == 2


def test_unknown_name():
    for call in (metric_path, load_metric):
        for name in ("accuracy", "../metrics/robust_accuracy", ""):
            with pytest.raises(ValueError, match=r"unknown metric .*'robust_accuracy'"):
                call(name)


def test_evaluate_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(ImportError, match=r"transformers-nim\[train\]"):
        load_metric("robust_accuracy")


def test_card():
    data = RepoCard.load(os.path.join(metric_path("robust_accuracy"), "README.md")).data
    assert (data.sdk, data.license) == ("gradio", "apache-2.0")
    assert {"evaluate", "metric"} <= set(data.tags)
    assert os.path.isfile(os.path.join(metric_path("robust_accuracy"), data.app_file))


# Run in a process of its own: what a user sees who has neither a network nor a cache.
OFFLINE = """
import socket
import sys

attempts = []

def refuse(*arguments, **options):
    attempts.append(arguments)
    raise OSError("no network")

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse)

import transformers_nim.metrics

heavy = sorted({"evaluate", "datasets"} & set(sys.modules))

import doctest
import json
import evaluate
from transformers_nim.metrics import load_metric, metric_path

inputs = json.loads(sys.argv[1])
folder, copy = metric_path("robust_accuracy"), sys.argv[2]
results = [evaluate.load(path).compute(**inputs) for path in (folder, copy)]
results.append(load_metric("robust_accuracy", keep_in_memory=True).compute(**inputs))

failed, examples = 0, 0
for function in (load_metric, metric_path, type(load_metric("robust_accuracy"))):
    (test,) = doctest.DocTestFinder(recurse=False).find(function, globs={})
    # A code fence closes the example.
    test.examples[-1].want = test.examples[-1].want.replace("```\\n", "")
    failed += doctest.DocTestRunner().run(test, out=sys.stderr.write).failed
    examples += len(test.examples)
card = doctest.testfile(folder + "/README.md", module_relative=False)
print(json.dumps([heavy, attempts, results, failed + card.failed, examples, card.attempted]))
"""


def test_no_network_is_needed(tmp_path, metric):
    """The metric loads from the package and from a copy such as a Space; the examples of card and docstrings run."""
    space = tmp_path / "somewhere" / "robust_accuracy"
    shutil.copytree(metric_path("robust_accuracy"), space)
    inputs = {"predictions": PREDICTIONS, "references": REFERENCES}
    offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE")
    caches = ("HF_MODULES_CACHE", "HF_METRICS_CACHE", "HF_EVALUATE_CACHE", "HF_DATASETS_CACHE", "HF_HUB_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in offline + caches}
    environment.update(HF_HOME=str(tmp_path / "home"), OMP_NUM_THREADS="1")
    finished = subprocess.run(
        [sys.executable, "-c", OFFLINE, json.dumps(inputs), str(space)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=environment,
    )
    assert finished.returncode == 0, finished.stderr
    heavy, attempts, results, failed, examples, in_card = json.loads(finished.stdout.splitlines()[-1])
    assert heavy == []
    assert attempts == []
    assert results == [metric.compute(**inputs)] * 3
    assert failed == 0, finished.stdout + finished.stderr
    assert examples >= 9
    assert in_card >= 8
