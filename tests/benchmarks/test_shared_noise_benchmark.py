# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""An attack under the noise that is trained on is stronger than one under other noise."""

import importlib.util
from pathlib import Path

import pytest

from transformers_nim import NIMForRobustImageClassification
from transformers_nim.data.loading import ImageSource
from transformers_nim.utils.statistics import paired_difference


ROOT = Path(__file__).parents[2]
CIFAR = ROOT.parent / "shared" / "data" / "cifar10"
MODEL = ROOT / "model_cards" / "nim-vit-tiny-patch8-32-cifar10-adversarial"


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.is_dir(), reason="needs CIFAR-10")
def test_shared_noise_is_stronger():
    """By 15 to 18 points on 1,000 images; here are few, so only the sign is asked for."""
    path = ROOT / "benchmarks" / "shared_noise.py"
    spec = importlib.util.spec_from_file_location("shared_noise_benchmark", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    model = NIMForRobustImageClassification.from_pretrained(MODEL)
    source = ImageSource(dataset_name=str(CIFAR), train_val_split=0.04, max_eval_samples=128)
    found = benchmark.measure(model, source, (1, 2), 100.0, 8 / 255)
    assert {correct.shape for correct in found.values()} == {(128, 1)}
    for steps in (1, 2):
        assert paired_difference(found[steps, "independent"], found[steps, "shared"]).low > 0
