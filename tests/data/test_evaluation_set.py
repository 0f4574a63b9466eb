# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import hashlib
from io import BytesIO

import pytest
import torch
from conftest import random_picture, tiny_model

from transformers_nim import NIMConfig, NIMImageProcessor
from transformers_nim.data.evaluation_set import EvaluationSet, class_numbers
from transformers_nim.data.loading import ImageSource


datasets = pytest.importorskip("datasets")
NAMES = ["LABEL_3", "LABEL_0", "LABEL_1", "LABEL_4", "LABEL_2"]
BROKEN = 2


def encoded(seed):
    buffer = BytesIO()
    random_picture(seed).save(buffer, "png")
    return {"bytes": buffer.getvalue()[: 60 if seed == BROKEN else None], "path": None}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pictures"
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=NAMES)})
    rows = {"image": [encoded(seed) for seed in range(8)], "label": [seed % 5 for seed in range(8)]}
    split = datasets.Dataset.from_dict(rows, features=features).cast_column("image", datasets.Image())
    datasets.DatasetDict({"test": split}).save_to_disk(path)
    return ImageSource(str(path), train_split_name="test", train_val_split=0).load(with_labels=True)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_images_are_those_of_the_data_set_with_the_models_labels(data, model):
    processor = NIMImageProcessor.from_config(model.config)
    images = EvaluationSet.from_data(data, model, processor, num_images=100)
    assert sorted(image.row for image in images.images) == [row for row in range(8) if row != BROKEN]
    assert images.undecodable == (BROKEN,)
    mean, std = (torch.tensor(getattr(model.config, f"image_{name}"))[:, None, None] for name in ("mean", "std"))
    for image in images.images:
        assert f"LABEL_{image.label}" == NAMES[image.row % 5]
        pixels = images.read(image.row)
        expected = processor(random_picture(image.row), return_tensors="pt")["pixel_values"][0] * std + mean
        assert torch.allclose(pixels, expected, atol=1e-6)
        assert pixels.min() >= 0 and pixels.max() <= 1  # noqa: PT018
        levels = (pixels * 255).round().to(torch.uint8).numpy().tobytes()
        assert image.image == hashlib.sha256(b"(3, 32, 32)" + levels).hexdigest()[:16]


def test_a_picture_is_recognized_after_another_normalization(data, model):
    usual = EvaluationSet.from_data(data, model, NIMImageProcessor.from_config(model.config), 7)
    other = tiny_model(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.1])
    again = EvaluationSet.from_data(data, other, NIMImageProcessor.from_config(other.config), 7)
    assert [image.image for image in usual.images] == [image.image for image in again.images]


def test_fewer_images_are_the_first_of_more(data, model):
    processor = NIMImageProcessor.from_config(model.config)
    few, many = (EvaluationSet.from_data(data, model, processor, num).images for num in (3, 7))
    assert few == many[:3]
    assert [image.row for image in many] != sorted(image.row for image in many)


def test_a_processor_that_does_not_do_what_it_says_is_refused(data, model):
    class Lying(NIMImageProcessor):
        def __call__(self, *args, **kwargs):
            features = super().__call__(*args, **kwargs)
            features["pixel_values"] = 3 * features["pixel_values"]
            return features

    with pytest.raises(ValueError, match="normalization is not the one"):
        EvaluationSet.from_data(data, model, Lying.from_config(model.config), num_images=4)


def test_class_numbers():
    class Data:
        label_names = ("cat", "dog")

    named = NIMConfig(id2label={0: "dog", 1: "cow", 2: "cat"}, label2id={"dog": 0, "cow": 1, "cat": 2})
    assert class_numbers(Data, named, by_index=False) == [2, 0]
    assert class_numbers(Data, named, by_index=True) == [0, 1]
    # Names that say nothing agree with any as many.
    assert class_numbers(Data, NIMConfig(num_labels=2)) == [0, 1]
    with pytest.raises(ValueError, match=r"does not know the classes \['cat', 'dog'\].*labels_by_index"):
        class_numbers(Data, NIMConfig(num_labels=3))
    with pytest.raises(ValueError, match="2 classes, the model 1"):
        class_numbers(Data, NIMConfig(num_labels=1), by_index=True)


def test_numbers_of_classes_are_not_their_order():
    class Data:
        label_names = ("0", "2", "5")

    assert class_numbers(Data, NIMConfig(num_labels=6), by_index=True) == [0, 2, 5]
    with pytest.raises(ValueError, match="has a class 5, the model 5 classes"):
        class_numbers(Data, NIMConfig(num_labels=5), by_index=True)
