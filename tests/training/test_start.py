# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What a training inherits from a checkpoint."""

import json

import pytest
import torch
from conftest import tiny_config
from safetensors.torch import save_file

from transformers_nim import NIMForImageClassification, NIMForPreTraining, NIMForRobustImageClassification, NIMModel
from transformers_nim.training.start import Start


NAMES = ["ant", "bee", "cat"]


def saved(folder, cls=NIMForImageClassification, card: str = "", results: dict | None = None, **fields) -> Start:
    config = tiny_config(num_labels=3, **fields)
    config.id2label = dict(enumerate(NAMES))
    cls(config).save_pretrained(folder)
    if card:
        (folder / "README.md").write_text(f"---\n{card}\n---\n# A model\n")
    if results is not None:
        (folder / "all_results.json").write_text(json.dumps(results))
    return Start.read(str(folder))


def test_name_and_license_are_those_of_the_card(tmp_path):
    start = saved(tmp_path / "here", card="license: cc-by-nc-4.0")
    assert (start.name, start.license) == ("here", "cc-by-nc-4.0")
    (tmp_path / "here" / "card.json").write_text(json.dumps({"name": "nim/pets"}))
    assert Start.read(str(tmp_path / "here")).name == "nim/pets"
    assert saved(tmp_path / "there").license is None


@pytest.mark.parametrize(
    ("cls", "results", "fields", "expected"),
    [
        (NIMForPreTraining, None, {}, (True, "denoised")),
        (NIMForRobustImageClassification, None, {}, (True, "denoised")),
        (NIMForRobustImageClassification, None, {"denoise": False}, (False, "smoothed")),
        (NIMForImageClassification, None, {}, (False, "clean")),
        (NIMForImageClassification, {"arguments": {"train_on": "noisy"}}, {}, (False, "noisy")),
    ],
)
def test_images_that_it_was_trained_on(cls, results, fields, expected, tmp_path):
    start = saved(tmp_path, cls, results=results, **fields)
    assert (start.has_denoiser, start.usual_images) == expected
    assert start.label_names == ([] if cls is NIMForPreTraining else NAMES)


@pytest.mark.parametrize(
    ("names", "head"),
    [
        (NAMES, "that of the checkpoint, for the same 3 classes"),
        (["0", "1", "2"], "that of the checkpoint, for the same 3 classes"),
        (["ant", "bee", "dog"], "new, since the checkpoint's 3 classes are called otherwise"),
        (["cat", "bee", "ant"], "new, since the checkpoint's 3 classes are called otherwise"),
        (["ant", "bee"], "new, for 2 classes instead of the checkpoint's 3"),
    ],
)
def test_heads(names, head, tmp_path):
    start = saved(tmp_path)
    assert start.describe_head(names) == head
    assert start.has_other_classes(names) == head.startswith("new")


def test_what_is_no_start(vit_path, tmp_path):
    with pytest.raises(OSError, match="is no checkpoint: it has no file"):
        Start.read(str(tmp_path))
    with pytest.raises(ValueError, match=r"holds no NIM model but \['ViTForImageClassification'\]"):
        Start.read(vit_path)
    tiny_config().save_pretrained(tmp_path)
    for weights in ({}, {"module.cls_token": torch.zeros(1)}):
        save_file(weights, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="the config of a NIM model, and no weights of one"):
            Start.read(str(tmp_path))


@pytest.mark.parametrize("architectures", [None, [], ["TheirOwn"]])
def test_a_start_is_what_its_weights_are(architectures, tmp_path):
    kinds = {NIMModel: False, NIMForPreTraining: True, NIMForRobustImageClassification: True,
             NIMForImageClassification: False}  # fmt: skip
    for cls, has_denoiser in kinds.items():
        named = saved(tmp_path, cls)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
        start = Start.read(str(tmp_path))
        assert (start.kind, start.has_denoiser) == (cls.__name__, has_denoiser)
        assert start.describe() == named.describe()
        assert start.usual_images == named.usual_images
