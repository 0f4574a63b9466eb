# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import doctest
import os
import shutil

import evaluate
import numpy as np
import pytest
import torch
from huggingface_hub import RepoCard

from transformers_nim.metrics import load_metric, metric_path
from transformers_nim.metrics.certified_accuracy.certified_accuracy import CertifiedAccuracy
from transformers_nim.robustness import wilson_interval


# Right and far, right and near, right on the radius, wrong and far, abstained.
INPUTS = {
    "predictions": [4, 0, 2, 3, -1],
    "certified_radii": [1.5, 0.125, 0.5, 2.0, 0.0],
    "references": [4, 0, 2, 1, 0],
}


@pytest.fixture
def metric():
    return CertifiedAccuracy(keep_in_memory=True)


def test_known_values(metric):
    results = metric.compute(**INPUTS, radii=[0, 0.25, 0.5, 0.51, 3])
    assert results["radii"] == [0, 0.25, 0.5, 0.51, 3]
    assert results["certified_accuracy"] == pytest.approx([0.6, 0.4, 0.4, 0.2, 0])
    assert results["average_certified_radius"] == pytest.approx((1.5 + 0.125 + 0.5) / 5)
    assert (results["abstained"], results["num_images"]) == (0.2, 5)
    assert metric.compute(**INPUTS)["radii"] == [0, 0.25, 0.5, 0.75, 1]


def test_intervals_are_wilsons(metric):
    for options in ({}, {"confidence": 0.6}):
        results = metric.compute(**INPUTS, radii=[0, 1], **options)
        intervals = list(zip(results["certified_accuracy_low"], results["certified_accuracy_high"]))
        assert intervals == [wilson_interval(0.6, 5, **options), wilson_interval(0.2, 5, **options)]


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_arrays(metric, kind):
    assert metric.compute(**{name: kind(column) for name, column in INPUTS.items()}) == metric.compute(**INPUTS)


def test_batches_and_images_that_are_left_out(metric):
    expected = metric.compute(**INPUTS)
    for start, stop in ((0, 1), (1, 5)):
        metric.add_batch(**{name: column[start:stop] for name, column in INPUTS.items()})
    metric.add_batch(predictions=[-1, 7], certified_radii=[float("nan"), 9.0], references=[-100, -100])
    assert metric.compute() == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"references": [-100] * 5}, "no images are left of 5"),
        ({"references": [4, 0, 2, 1, -1]}, "references must be classes.* 0, not -1.0"),
        ({"predictions": [4, 0, 2, 3, -2]}, "predictions must be classes.* -1, not -2.0"),
        ({"predictions": [4, 0, 2, 3.5, -1]}, "predictions must be classes.*3.5"),
        ({"predictions": [4, 0, 2, 3]}, "Mismatch in the number"),
        ({"certified_radii": [1.5, -0.1, 0.5, 2.0, 0.0]}, "certified_radii must be finite and at least 0, not -0.1"),
        ({"certified_radii": [1.5, float("inf"), 0.5, 2.0, 0.0]}, "certified_radii must be finite"),
        ({"radii": [0, -1]}, "radii must be finite and at least 0, not -1.0"),
        ({"confidence": 95}, "between 0 and 1, not 95"),
    ],
)
def test_errors(metric, change, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(**{**INPUTS, **change})


def test_examples_of_card_and_docstring_run():
    card = doctest.testfile(os.path.join(metric_path("certified_accuracy"), "README.md"), module_relative=False)
    assert (card.failed, card.attempted >= 8) == (0, True)
    (test,) = doctest.DocTestFinder(recurse=False).find(type(load_metric("certified_accuracy")), "metric", globs={})
    results = doctest.DocTestRunner().run(test)
    assert (results.failed, results.attempted) == (0, 4)


def test_it_loads_from_a_copy_such_as_a_space(metric, tmp_path):
    folder = metric_path("certified_accuracy")
    space = shutil.copytree(folder, tmp_path / "somewhere" / "certified_accuracy")
    assert evaluate.load(str(space)).compute(**INPUTS) == metric.compute(**INPUTS)
    data = RepoCard.load(os.path.join(folder, "README.md")).data
    assert (data.sdk, data.license) == ("gradio", "apache-2.0")
    assert {"evaluate", "metric"} <= set(data.tags)
    assert os.path.isfile(os.path.join(folder, data.app_file))
    assert {"app.py", "requirements.txt"} <= set(os.listdir(folder))
