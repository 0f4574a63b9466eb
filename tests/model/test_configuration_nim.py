# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

from transformers_nim import NIM_SIZES, NIMConfig, NIMForPreTraining, UniformSigma


def test_defaults_are_the_paper_base():
    config = NIMConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert (config.decoder_hidden_size, config.decoder_num_hidden_layers, config.decoder_num_attention_heads) == (
        512,
        8,
        16,
    )
    assert config.pretraining_sigma == {"type": "gamma", "concentration": 25, "scale": 3}
    assert config.finetuning_sigma == {"type": "uniform", "low": 0, "high": 30}
    assert config.defense_sigma == {"type": "constant", "value": 70}
    assert {key: NIMConfig.from_size("base").to_dict()[key] for key in config.to_dict()} == config.to_dict()


def test_named_sizes():
    assert set(NIM_SIZES) == {"tiny", "small", "base", "large", "huge", "tiny-patch4-32", "tiny-patch8-32"}
    for size in NIM_SIZES:
        config = NIMConfig.from_size(size)
        assert config.intermediate_size == 4 * config.hidden_size
    assert NIMConfig.from_size("huge").patch_grid == (16, 16)
    assert NIMConfig.from_size("tiny-patch4-32", num_labels=10).num_labels == 10
    with pytest.raises(ValueError, match=r"unknown size 'giant'; known: \['base'"):
        NIMConfig.from_size("giant")


def test_round_trip_through_a_folder(tmp_path):
    config = NIMConfig(image_size=(24, 32), patch_size=(4, 8), defense_sigma=UniformSigma(5, 60), num_channels=1)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is NIMConfig
    assert loaded.image_shape == (24, 32)
    assert loaded.patch_grid == (6, 4)
    assert loaded.image_mean == [0.5]
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["defense_sigma"] == {"type": "uniform", "low": 5, "high": 60}


def test_sigma_may_be_assigned_later():
    config = NIMConfig()
    config.defense_sigma = 25
    assert config.defense_sigma == {"type": "constant", "value": 25}
    config.defense_sigma = None
    assert config.defense_sigma is None
    with pytest.raises(ValueError, match=r"defense_sigma.*-3"):
        config.defense_sigma = -3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden_size": "big"}, "hidden_size"),
        ({"hidden_size": 770}, "hidden_size 770 .* 12 attention heads"),
        ({"hidden_size": 30, "num_attention_heads": 5}, "hidden_size 30 .* multiple of 4"),
        ({"decoder_hidden_size": 100}, "decoder_hidden_size 100"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be positive, got 0"),
        ({"image_size": 225}, "patch_size 16 must divide image_size 225"),
        ({"image_size": (224, 230)}, "must divide"),
        ({"image_size": -16}, "image_size must be a positive"),
        ({"patch_size": [16, 16, 16]}, "patch_size"),
        ({"num_channels": 0}, "num_channels"),
        ({"drop_path_rate": 1.0}, "drop_path_rate .* less than 1"),
        ({"hidden_dropout_prob": -0.1}, "hidden_dropout_prob"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
        ({"initializer_range": -1.0}, "initializer_range"),
        ({"patch_statistics": "clean"}, "patch_statistics.*noisy"),
        ({"norm_pix_loss": "yes"}, "norm_pix_loss"),
        ({"image_mean": [0.5]}, "image_mean must have one value for each of 3"),
        ({"image_std": [0.2, 0.0, 0.2]}, "image_std must be finite and positive"),
        ({"pretraining_sigma": None}, "pretraining_sigma.*None"),
        ({"pretraining_sigma": {"type": "gamma", "concentration": 25, "rate": 1}}, "pretraining_sigma.*scale"),
        ({"finetuning_sigma": {"type": "uniform", "low": 9, "high": 3}}, "finetuning_sigma.*high"),
        ({"defense_sigma": float("inf")}, "defense_sigma.*inf"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_samples": 2.5}, "num_samples"),
        ({"vote": "median"}, "vote"),
        ({"hidden_act": "foo"}, "hidden_act must be one of .*'foo'"),
        ({"num_labels": "3"}, "num_labels .*'3'"),
        ({"num_labels": -1}, "num_labels .*-1"),
        ({"defense_sigma": {"type": ["constant"], "value": 1}}, "defense_sigma.*constant"),
        ({"image_size": 10**9}, "image_size must be at most 16384, got 1000000000"),
        ({"image_size": [32, 10**9]}, "image_size must be at most 16384"),
        ({"image_size": 8192, "patch_size": 8}, "65536 patches, got 1048576"),
        ({"num_labels": 10**9}, "num_labels must be at most 1048576, got 1000000000"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers must be at most 1000, got 1000000"),
        ({"decoder_num_hidden_layers": 10**6}, "decoder_num_hidden_layers must be at most 1000"),
        ({"num_channels": 10**9}, "num_channels must be at most 1024"),
        ({"num_samples": 10**9}, "num_samples must be at most 1048576"),
        ({"hidden_size": 49152, "intermediate_size": 2**17}, r"30,000,000,000 parameters, .* 27\d,\d+,\d+,\d+$"),
        ({"layer_norm_eps": 1e30}, "layer_norm_eps must be at most 1"),
        ({"image_std": [1e-40, 1, 1]}, "image_std must be finite and positive"),
        ({"image_mean": "abc"}, "image_mean"),
        ({"id2label": ["cat", "dog"]}, r"id2label must map .*\['cat', 'dog'\]"),
        ({"id2label": "cat"}, "id2label must map .*'cat'"),
        ({"id2label": {5: "cat", 6: "dog"}}, "id2label must map the numbers 0, 1, ... .*5: 'cat'"),
        ({"id2label": {"x": "cat"}}, "id2label must map"),
        ({"id2label": {0: ["cat"]}}, "id2label must be texts"),
        ({"id2label": {}}, "id2label must map"),
        ({"label2id": ["cat"]}, "label2id must map"),
        ({"architectures": [5]}, r"architectures must be a list of names of classes, got \[5\]"),
        ({"architectures": "NIMModel"}, "architectures must be a list"),
        ({"dtype": 5}, "dtype must be a type of torch .*5"),
        ({"dtype": "floaty"}, "dtype must be a type of torch .*'floaty'"),
        ({"dtype": [1]}, "dtype must be a type of torch"),
        ({"return_dict": 5}, "return_dict must be true or false, got 5"),
        ({"output_attentions": "no"}, "output_attentions must be true or false"),
        ({"problem_type": "guessing"}, "problem_type must be .*'guessing'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_every_wrong_value_is_a_value_error_that_names_it(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        NIMConfig(**wrong)
    assert "\n" not in str(error.value)


def test_wrong_assignment_is_a_value_error():
    config = NIMConfig()
    for name, value in [
        ("hidden_size", "big"), ("num_labels", 10**9), ("id2label", {5: "cat"}), ("dtype", 5)
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=name):
            setattr(config, name, value)


@pytest.mark.parametrize("wrong", [{"num_labels": 10**9}, {"id2label": ["cat"]}, {"dtype": "floaty"}], ids=str)
def test_wrong_values_of_a_file_are_value_errors(tmp_path, wrong):
    (tmp_path / "config.json").write_text(json.dumps(NIMConfig(num_labels=2).to_dict() | wrong))
    for cls in (AutoConfig, NIMConfig):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            cls.from_pretrained(tmp_path)


def test_large_models_have_configs():
    # ViT-22B, and more classes than any data set of pictures has.
    config = NIMConfig(
        hidden_size=6144, num_hidden_layers=48, num_attention_heads=48, intermediate_size=24576, num_labels=22000
    )
    assert config.id2label[21999] == "LABEL_21999"
    assert NIMConfig(num_labels=3, dtype="bfloat16").dtype == torch.bfloat16
    assert NIMConfig(dtype=torch.float16, id2label={"0": "cat", "1": "dog"}).id2label == {0: "cat", 1: "dog"}


@pytest.mark.parametrize("content", ["null", "5", "[]", '"nim"', "{"])
def test_file_without_fields_is_an_os_error(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    for cls in (NIMConfig, NIMForPreTraining):
        with pytest.raises(OSError, match=str(tmp_path)):
            cls.from_pretrained(tmp_path)


def test_numbers_of_numpy_can_be_saved_and_changes_in_place_are_checked(tmp_path):
    config = NIMConfig(defense_sigma=np.float32(3), image_size=(32, 32))
    config.save_pretrained(tmp_path)
    assert NIMConfig.from_pretrained(tmp_path).defense_sigma == {"type": "constant", "value": 3}
    assert NIMConfig.from_pretrained(tmp_path).image_size == config.image_size
    config.defense_sigma["value"] = -5
    with pytest.raises(ValueError, match=r"defense_sigma.*-5"):
        config.validate()


def test_documentation_has_no_holes():
    """auto_docstring writes None where it cannot infer a name."""
    assert "None Model" not in NIMConfig.__doc__
    assert "of a None" not in NIMConfig.__doc__
    assert "pooler" not in NIMConfig.__doc__
    assert "Transformer decoder" not in NIMConfig.__doc__
    for field in NIMConfig.__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys():
        assert f"    {field} (" in NIMConfig.__doc__, f"{field} is not documented"
