# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""`pipeline("image-classification", certify=True)`."""

from functools import partial

import pytest
import torch
from conftest import random_picture
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

from transformers_nim import NIMImageProcessor


OPTIONS = {"sigma": 20, "n0": 20, "n": 150, "seed": 3}
make_pipeline = partial(pipeline, "image-classification")


@pytest.fixture(scope="module")
def pipe(robust_path):
    return make_pipeline(model=robust_path, certify=True, **OPTIONS)


def by_hand(model, picture, seed=3, **options):
    pixel_values = NIMImageProcessor.from_config(model.config)(picture, return_tensors="pt")["pixel_values"]
    generator = [torch.Generator().manual_seed(seed)]
    return model.certify(pixel_values, **{"sigma": 20, "n0": 20, "n": 150, **options}, generator=generator)[0]


def test_answers_are_certificates(pipe, robust_model):
    pictures = [random_picture(seed) for seed in range(7)]
    answers = pipe(pictures)
    certificates = [by_hand(robust_model, picture) for picture in pictures]
    for (answer,), certificate in zip(answers, certificates, strict=True):
        assert answer["certificate"] == certificate
        assert (answer["score"], answer["radius"]) == (certificate.p_lower, certificate.radius)
        assert answer["label"] == (None if certificate.label == -1 else f"LABEL_{certificate.label}")
    labels = [answer["label"] for (answer,) in answers]
    assert None in labels
    assert len(set(labels)) >= 3
    # Batches, and a single picture.
    assert pipe(pictures, batch_size=3) == answers
    assert pipe(pictures[2]) == answers[2]


def test_options_of_a_call(pipe, robust_model):
    picture = random_picture(0)
    for options in ({"n": 60}, {"n0": 4}, {"alpha": 0.2}, {"sigma": 5}, {"sequential": True, "target_radius": 0.01}):
        (answer,) = pipe(picture, **options)
        assert answer["certificate"] == by_hand(robust_model, picture, **options), options
        assert answer["certificate"] != by_hand(robust_model, picture), options
    assert pipe(picture, seed=4)[0]["certificate"] == by_hand(robust_model, picture, seed=4)


def test_certificates_can_be_switched_on_and_off(pipe, robust_path):
    picture = random_picture(0)
    plain = make_pipeline(model=robust_path, sigma=20, seed=3)
    assert pipe(picture, certify=False) == plain(picture)
    assert plain(picture, certify=True, n0=20, n=150) == pipe(picture)
    # Its own draws do not matter to certificates.
    voting = make_pipeline(model=robust_path, sigma=20, seed=3, num_samples=8)
    assert voting(picture, certify=True, n0=20, n=150) == pipe(picture)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"certify": 1}, "certify must be True or False, got 1"),
        ({"certify": True, "num_samples": 4}, "leave out num_samples"),
        ({"certify": True, "vote": "majority"}, "leave out num_samples, vote"),
        ({"certify": True, "return_denoised": True}, "leave out"),
        ({"sigma": None}, "sigma=None"),
        ({"sigma": 0}, "sigma=0"),
        ({"sigma": {"type": "uniform", "low": 0, "high": 30}}, "random sigma"),
        ({"n": -1}, "n must be"),
    ],
)
def test_errors(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(random_picture(0), **options)


def test_other_models_are_not_certified():
    model = ViTForImageClassification(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32)
    )
    for options in ({"certify": True}, {"alpha": 0.1}):
        with pytest.raises(ValueError, match="need a NIMForRobustImageClassification"):
            make_pipeline(model=model, image_processor=ViTImageProcessor(), **options)
