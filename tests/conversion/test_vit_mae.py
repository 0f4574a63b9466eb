# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Warm start from transformers' ViT-MAE, whose own predictions are the reference."""

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from safetensors.torch import load_file, save_file
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel
from vit_mae_reference import random_vit_mae, vit_mae_config

from transformers_nim import NIMConfig, NIMForPreTraining, NIMForRobustImageClassification, NIMImageProcessor
from transformers_nim.conversion.__main__ import main
from transformers_nim.conversion.vit_mae import convert_vit_mae_state_dict, load_vit_mae
from transformers_nim.utils.cli import run_command


TOLERANCE = 1e-5

# How each layout names the parts of NIM: the Hub's, that of 5.23 in memory, that of its files.
OF_LAYER = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "layernorm_before": "layernorm_before",
    "layernorm_after": "layernorm_after",
}
OF_DECODER = {
    "decoder.position_embeddings": "decoder.decoder_pos_embed",
    "decoder.embed": "decoder.decoder_embed",
    "decoder.layernorm": "decoder.decoder_norm",
    "decoder.projection": "decoder.decoder_pred",
}
LAYOUTS = {
    "hub": ("vit.encoder.layer", "decoder.decoder_layers", OF_LAYER),
    "memory": ("vit.layers", "decoder.decoder_layers", {}),
    "saved": ("vit.encoder.layer", "decoder.decoder_encoder.layer", OF_LAYER),
}


def layout_of(name: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """NIM's weights under the names of one of the three layouts."""
    encoder, decoder, parts = LAYOUTS[name]
    renamed = {"decoder.mask_token": torch.ones(1, 1, 32)}
    for key, tensor in weights.items():
        place, _, leaf = key.rpartition(".")
        owner, _, rest = place.partition(".layers.")
        if rest:
            index, _, part = rest.partition(".")
            place = f"{encoder if owner == 'nim' else decoder}.{index}.{parts.get(part, part)}"
            key = f"{place}.{leaf}"
        elif key in OF_DECODER:
            key = OF_DECODER[key]
        elif place in OF_DECODER:
            key = f"{OF_DECODER[place]}.{leaf}"
        else:
            key = f"vit.{key.removeprefix('nim.')}"
        renamed[key] = tensor
    return renamed


def write(folder: Path, config: ViTMAEConfig, weights: dict[str, torch.Tensor]) -> Path:
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def vit_mae():
    return random_vit_mae(mask_ratio=0.0)


@pytest.fixture(scope="module")
def saved(vit_mae, tmp_path_factory) -> Path:
    """As transformers itself saves it."""
    folder = tmp_path_factory.mktemp("vit_mae")
    vit_mae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pixel_values():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same_predictions(model, vit_mae, pixel_values):
    expected = vit_mae(pixel_values, noise=torch.rand(len(pixel_values), 16)).logits
    # Large enough that a difference would show.
    assert expected.std() > 0.1
    torch.testing.assert_close(model(pixel_values, sigma=0).logits, expected, rtol=0, atol=TOLERANCE)


def test_predicts_what_an_unmasked_vit_mae_does(vit_mae, saved, pixel_values):
    model = load_vit_mae(saved)
    assert not model.training
    assert type(model) is NIMForPreTraining
    assert_same_predictions(model, vit_mae, pixel_values)


def test_saved_model_loads_like_any_other(vit_mae, saved, pixel_values, tmp_path):
    load_vit_mae(str(saved), num_labels=4).save_pretrained(tmp_path)
    model, info = NIMForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_same_predictions(model, vit_mae, pixel_values)
    assert NIMForRobustImageClassification.from_pretrained(tmp_path).classifier.out_features == 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(vit_mae, pixel_values, tmp_path, layout):
    weights = convert_vit_mae_state_dict(vit_mae.state_dict())
    names = layout_of(layout, weights)
    converted = convert_vit_mae_state_dict(names)
    assert converted.keys() == weights.keys()
    assert all(converted[name] is tensor for name, tensor in weights.items())
    assert_same_predictions(load_vit_mae(write(tmp_path, vit_mae.config, names)), vit_mae, pixel_values)


def test_layouts_are_those_of_transformers(vit_mae, saved):
    layouts = [layout_of(name, convert_vit_mae_state_dict(vit_mae.state_dict())).keys() for name in LAYOUTS]
    assert vit_mae.state_dict().keys() in layouts
    assert load_file(saved / "model.safetensors").keys() in layouts


@pytest.mark.parametrize("container", ["shards", "bin", "bin shards", "half precision"])
def test_containers(vit_mae, saved, pixel_values, tmp_path, container):
    vit_mae.config.save_pretrained(tmp_path)
    weights = load_file(saved / "model.safetensors")
    halves = [dict(list(weights.items())[part::2]) for part in range(2)]
    if container == "shards":
        vit_mae.save_pretrained(tmp_path, max_shard_size="30KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
    elif container == "bin":
        torch.save(weights, tmp_path / "pytorch_model.bin")
    elif container == "bin shards":
        weight_map: dict[str, str] = {}
        for part, half in enumerate(halves):
            torch.save(half, tmp_path / f"pytorch_model-{part}.bin")
            weight_map |= dict.fromkeys(half, f"pytorch_model-{part}.bin")
        index = {"metadata": {}, "weight_map": weight_map}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    model = load_vit_mae(tmp_path)
    if container == "half precision":
        projection = vit_mae.decoder.decoder_pred.weight.bfloat16().float()
        assert torch.equal(model.decoder.projection.weight, projection)
    else:
        assert_same_predictions(model, vit_mae, pixel_values)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_config(tmp_path, norm_pix_loss):
    theirs = vit_mae_config(norm_pix_loss=norm_pix_loss, qkv_bias=False, hidden_act="relu", image_size=[32, 32])
    ViTMAEForPreTraining(theirs).save_pretrained(tmp_path)
    config = load_vit_mae(tmp_path, defense_sigma=40, patch_statistics="input").config
    expected = tiny_config(norm_pix_loss=norm_pix_loss, qkv_bias=False, hidden_act="relu", image_size=[32, 32])
    for name in ("hidden_size", "decoder_num_hidden_layers", "image_size", "qkv_bias", "hidden_act", "norm_pix_loss"):
        assert getattr(config, name) == getattr(expected, name), name
    assert config.model_type == "nim"
    assert config.patch_statistics == "input"
    assert config.defense_sigma["value"] == 40
    assert not hasattr(config, "mask_ratio")


def test_epsilon_is_that_of_maes_code(vit_mae, saved, tmp_path):
    assert load_vit_mae(saved).config.layer_norm_eps == vit_mae.config.layer_norm_eps == 1e-6
    for written, expected in ((1e-12, 1e-6), (1e-5, 1e-5)):
        folder = write(tmp_path / str(written), vit_mae_config(layer_norm_eps=written), vit_mae.state_dict())
        assert load_vit_mae(folder).config.layer_norm_eps == expected
    assert load_vit_mae(tmp_path / "1e-12", layer_norm_eps=1e-12).config.layer_norm_eps == 1e-12


def test_position_embeddings_are_the_checkpoints(saved, tmp_path):
    theirs = load_file(saved / "model.safetensors")
    model = load_vit_mae(saved)
    assert torch.equal(model.nim.embeddings.position_embeddings, theirs["vit.embeddings.position_embeddings"])
    assert torch.equal(model.decoder.position_embeddings, theirs["decoder.decoder_pos_embed"])
    model.save_pretrained(tmp_path)
    loaded = NIMForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(loaded.nim.embeddings.position_embeddings, theirs["vit.embeddings.position_embeddings"])


def test_image_statistics_are_those_of_the_image_processor(vit_mae, tmp_path):
    folder = write(tmp_path, vit_mae.config, vit_mae.state_dict())
    imagenet = NIMConfig()
    assert load_vit_mae(folder).config.image_mean == imagenet.image_mean
    statistics = {"image_mean": [0.5, 0.5, 0.4], "image_std": [0.2, 0.2, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    config = load_vit_mae(folder, image_std=[1.0, 1.0, 1.0]).config
    assert config.image_mean == [0.5, 0.5, 0.4]
    assert config.image_std == [1.0, 1.0, 1.0]


def test_hub_names_revisions_and_subfolders(saved, vit_mae, pixel_values, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--someone--mae" / "snapshots" / commit
    (snapshot / "inner").mkdir(parents=True)
    for file in saved.iterdir():
        (snapshot / "inner" / file.name).write_bytes(file.read_bytes())
    reference = tmp_path / "models--someone--mae" / "refs" / "tagged"
    reference.parent.mkdir()
    reference.write_text(commit)
    source = {"cache_dir": tmp_path, "local_files_only": True, "subfolder": "inner"}
    model = load_vit_mae("someone/mae", revision="tagged", **source)
    assert_same_predictions(model, vit_mae, pixel_values)
    assert model.config.name_or_path == "someone/mae"
    with pytest.raises(OSError, match=r"someone/mae|cached files"):
        load_vit_mae("someone/mae", revision="other", **source)


def test_encoders_alone_are_refused(tmp_path):
    encoder = ViTMAEModel(vit_mae_config())
    encoder.save_pretrained(tmp_path)
    for state_dict in (encoder.state_dict(), {f"vit.{name}": t for name, t in encoder.state_dict().items()}):
        with pytest.raises(ValueError, match="pretraining checkpoint"):
            convert_vit_mae_state_dict(state_dict)
    with pytest.raises(ValueError, match="no decoder"):
        load_vit_mae(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "vit.pooler.dense.weight",
        "vit.layers.0.attention.qkv.weight",
        "vit.layers.x.mlp.fc1.weight",
        "vit.decoder.layers.0.mlp.fc1.weight",
        "vit.mask_token",
        "blocks.0.attn.qkv.weight",
        "decoder.layers.0.mlp.fc1.weight",
        "decoder.decoder_layers.0.mlp.fc1.scale",
    ],
)
def test_unknown_tensors_are_refused(vit_mae, name):
    with pytest.raises(ValueError, match=f"unexpected tensor '{name}'"):
        convert_vit_mae_state_dict(vit_mae.state_dict() | {name: torch.zeros(1)})


def test_wrong_checkpoints_say_what_is_wrong(vit_mae, saved, tmp_path):
    with pytest.raises(ValueError, match="no field 'num_lables'"):
        load_vit_mae(saved, num_lables=3)
    with pytest.raises(ValueError, match="sigma"):
        load_vit_mae(saved, defense_sigma=-1)
    with pytest.raises(OSError, match="nowhere"):
        load_vit_mae(tmp_path / "nowhere")

    tiny_config().save_pretrained(tmp_path / "nim")
    with pytest.raises(ValueError, match=r"type 'nim'.*'vit_mae'"):
        load_vit_mae(tmp_path / "nim")
    vit_mae.config.save_pretrained(tmp_path / "empty")
    with pytest.raises(OSError, match="no weights"):
        load_vit_mae(tmp_path / "empty")

    weights = vit_mae.state_dict()
    fewer = {name: tensor for name, tensor in weights.items() if name != "decoder.decoder_norm.bias"}
    with pytest.raises(ValueError, match=r"decoder\.layernorm\.bias"):
        load_vit_mae(write(tmp_path / "fewer", vit_mae.config, fewer))
    with pytest.raises(ValueError, match="do not fit its config"):
        load_vit_mae(write(tmp_path / "other", vit_mae_config(image_size=64), weights))

    for file_name, content in (("model.safetensors", "text"), ("pytorch_model.bin", "text")):
        vit_mae.config.save_pretrained(tmp_path / file_name)
        (tmp_path / file_name / file_name).write_text(content)
        with pytest.raises(ValueError, match=f"{file_name} cannot be read"):
            load_vit_mae(tmp_path / file_name)
    torch.save({"model": weights}, tmp_path / "pytorch_model.bin" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="something else than tensors"):
        load_vit_mae(tmp_path / "pytorch_model.bin")


def test_nothing_in_a_checkpoint_is_executed(vit_mae, tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    vit_mae.config.save_pretrained(tmp_path)
    torch.save({"vit.layernorm.bias": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read"):
        load_vit_mae(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_command_line(saved, vit_mae, pixel_values, tmp_path):
    out = tmp_path / "out"
    main(["--vit_mae", str(saved), "--output_dir", str(out)])
    assert_same_predictions(NIMForPreTraining.from_pretrained(out), vit_mae, pixel_values)
    assert NIMImageProcessor.from_pretrained(out).crop_size["height"] == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vit_mae", "x", "--pretraining", "y"], "not allowed with argument"),
        (["--vit_mae", "x", "--finetuned", "y"], "--finetuned: not allowed with --vit_mae"),
        (["--vit_mae", "x", "--no_norm_pix_loss"], "--no_norm_pix_loss: not allowed with --vit_mae"),
        (
            ["--finetuned", "y"],
            "one of the arguments --pretraining --vit_mae --denoiser --to_authors --to_bfloat16 is required",
        ),
        (["--vit_mae", "no/such/folder"], "no/such/folder"),
    ],
)
def test_command_line_errors(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_info:
        run_command(lambda: main([*arguments, "--output_dir", str(tmp_path / "out")]))
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
