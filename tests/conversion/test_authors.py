# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Conversion of the authors' checkpoints and back, and through it parity with the authors' code."""

import argparse
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import save_with_processor, tiny_config, tiny_model
from other_classifiers import other_classifier
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification

from transformers_nim import (
    NIMConfig,
    NIMForImageClassification,
    NIMForPreTraining,
    NIMForRobustImageClassification,
    NIMImageProcessor,
    NIMModel,
)
from transformers_nim.conversion import (
    authors,
    convert_authors_checkpoint,
    convert_authors_state_dict,
    save_authors_checkpoint,
    to_authors_state_dict,
)
from transformers_nim.conversion.__main__ import main
from transformers_nim.conversion.authors import config_from_weights, load_authors_checkpoint
from transformers_nim.utils.cli import run_command


DATA = Path(__file__).parents[1] / "golden"
# Relative to the largest value of a tensor, on CPU in float32.
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
HEADS = {"num_attention_heads": 4, "decoder_num_attention_heads": 4}


def assert_agrees(actual, expected, tolerance, name):
    difference = (actual - expected).abs().max().item() / expected.abs().max().item()
    assert actual.shape == expected.shape, name
    assert difference <= tolerance, f"{name}: differs by {difference:.1e} of the largest value"


def part(tensors, prefix):
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


@pytest.fixture(scope="module", params=["true", "false"], ids=["norm_pix_loss", "no_norm_pix_loss"])
def golden(request, tmp_path_factory):
    """The recorded tensors, and their weights converted by the real conversion from files like the authors'."""
    path = DATA / f"nim_mae_tiny_norm_pix_{request.param}.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        shapes = json.loads(file.metadata()["config"])
    folder = tmp_path_factory.mktemp("authors")
    extras = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}, "param_groups": []}}
    torch.save({"model": part(tensors, "denoiser."), **extras}, folder / "pretraining.pt")
    torch.save({"classifier": part(tensors, "classifier."), **extras}, folder / "finetuned.pt")
    options = {
        "num_attention_heads": shapes["num_heads"],
        "decoder_num_attention_heads": shapes["decoder_num_heads"],
        "norm_pix_loss": shapes["norm_pix_loss"],
    }
    convert_authors_checkpoint(folder / "pretraining.pt", folder / "pretrained", **options)
    convert_authors_checkpoint(
        folder / "pretraining.pt", folder / "robust", finetuned=folder / "finetuned.pt", **options
    )
    return tensors, folder


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_pretraining_agrees_with_the_authors_code(golden, attention):
    tensors, folder = golden
    model = NIMForPreTraining.from_pretrained(folder / "pretrained", attn_implementation=attention)
    outputs = model(
        tensors["inputs.pixel_values"], sigma=tensors["inputs.sigma"], pixel_noise=tensors["inputs.pixel_noise"]
    )
    for name, actual in (
        ("noisy_pixel_values", outputs.noisy_pixel_values),
        ("decoder_prediction", outputs.logits),
        ("denoised_pixel_values", outputs.denoised_pixel_values),
        ("loss", outputs.loss[None]),
    ):
        assert_agrees(actual, tensors[f"pretraining.{name}"], OUTPUT_TOLERANCE, name)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("name", "sigma"), [("70", 70), ("140", 140), ("0", 0), ("off", None)])
def test_defense_agrees_with_the_authors_code(golden, attention, name, sigma):
    tensors, folder = golden
    model = NIMForRobustImageClassification.from_pretrained(folder / "robust", attn_implementation=attention)
    pixel_values = tensors["inputs.pixel_values"].clone().requires_grad_()
    outputs = model(
        pixel_values,
        labels=tensors["inputs.labels"],
        sigma=sigma,
        pixel_noise=tensors["inputs.pixel_noise"],
        output_draws=True,
    )
    outputs.loss.backward()
    expected = part(tensors, f"defense.sigma_{name}.")
    assert_agrees(outputs.logits, expected["logits"], OUTPUT_TOLERANCE, "logits")
    assert_agrees(pixel_values.grad, expected["input_gradient"], GRADIENT_TOLERANCE, "input gradient")
    if sigma is not None:
        denoised = outputs.denoised_pixel_values[0, 0]
        assert_agrees(denoised, expected["first_purified_image"], OUTPUT_TOLERANCE, "denoised image")


def test_converted_folder_is_complete(golden):
    _, folder = golden
    config = NIMConfig.from_pretrained(folder / "robust")
    assert config.patch_statistics == "input"
    assert config.num_labels == 10
    assert NIMImageProcessor.from_pretrained(folder / "robust").crop_size["height"] == 32


def test_position_embeddings_of_the_authors_are_ours(golden):
    """Their stored tables are what a new model computes, so the fixed ones need not be trusted to a file."""
    tensors, folder = golden
    fresh = NIMForPreTraining(NIMConfig.from_pretrained(folder / "pretrained"))
    for ours, theirs in (
        (fresh.nim.embeddings.position_embeddings, "denoiser.pos_embed"),
        (fresh.decoder.position_embeddings, "denoiser.decoder_pos_embed"),
    ):
        torch.testing.assert_close(ours, tensors[theirs], rtol=0, atol=1e-6)


def test_command_line_from_the_authors(golden, tmp_path, capsys):
    _, folder = golden
    arguments = ["--pretraining", str(folder / "pretraining.pt"), "--finetuned", str(folder / "finetuned.pt")]
    arguments += ["--output_dir", str(tmp_path / "out"), "--num_attention_heads", "4"]
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: main(arguments))
    assert stopped.value.code == 2
    assert "--decoder_num_attention_heads" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    main([*arguments, "--decoder_num_attention_heads", "3"])
    NIMForRobustImageClassification.from_pretrained(tmp_path / "out")


def test_paper_sizes_need_no_head_counts():
    model = NIMForPreTraining(NIMConfig.from_size("tiny", decoder_num_hidden_layers=1))
    config = config_from_weights(model.state_dict())
    assert (config.num_attention_heads, config.decoder_num_attention_heads) == (3, 16)
    assert (config.image_size, config.patch_size) == (224, 16)


def test_wrong_files_say_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        load_authors_checkpoint(tmp_path / "nothing.pt", "model")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"text\.pt cannot be read"):
        load_authors_checkpoint(tmp_path / "text.pt", "model")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"no entry 'model'.*state_dict"):
        load_authors_checkpoint(tmp_path / "other.pt", "model")
    with pytest.raises(ValueError, match=r"unexpected tensor 'layer1\.weight'"):
        convert_authors_state_dict({"layer1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="not a pretraining checkpoint"):
        config_from_weights({})


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"model": {}, "args": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        load_authors_checkpoint(tmp_path / "evil.pt", "model")
    assert not (tmp_path / "executed").exists()


def test_missing_tensors_are_refused(golden, tmp_path):
    tensors, _ = golden
    weights = part(tensors, "denoiser.")
    del weights["decoder_blocks.1.norm2.bias"]
    torch.save({"model": weights}, tmp_path / "half.pt")
    with pytest.raises(ValueError, match=r"decoder\.layers\.1\.layernorm_after\.bias"):
        convert_authors_checkpoint(
            tmp_path / "half.pt", tmp_path / "out", num_attention_heads=4, decoder_num_attention_heads=3
        )


@pytest.mark.parametrize("cls", [NIMForPreTraining, NIMForImageClassification, NIMForRobustImageClassification])
def test_half_the_size_on_disk_and_float32_in_memory(cls, tmp_path):
    model = cls(tiny_config())
    model.save_pretrained(tmp_path / "full")
    processor = NIMImageProcessor.from_config(model.config, do_center_crop=False)
    processor.save_pretrained(tmp_path / "full")
    main(["--to_bfloat16", str(tmp_path / "full"), "--output_dir", str(tmp_path / "half")])

    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert stored.keys() == load_file(tmp_path / "full" / "model.safetensors").keys()
    loaded = cls.from_pretrained(tmp_path / "half")
    assert loaded.dtype == torch.float32
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.to(torch.bfloat16).float()), name
    assert NIMImageProcessor.from_pretrained(tmp_path / "half").to_dict() == processor.to_dict()


def test_only_models_of_this_package_are_rounded(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_command(lambda: main(["--to_bfloat16", str(tmp_path / "nothing"), "--output_dir", str(tmp_path / "half")]))
    assert "nothing" in capsys.readouterr().err
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="holds no NIM model"):
        main(["--to_bfloat16", str(tmp_path / "vit"), "--output_dir", str(tmp_path / "half")])
    assert not (tmp_path / "half").exists()


def test_exact_weights_are_not_overwritten_by_rounded_ones(tmp_path):
    save_with_processor(tiny_model(), tmp_path / "model")
    with pytest.raises(ValueError, match="holds the only copy"):
        main(["--to_bfloat16", str(tmp_path / "model"), "--output_dir", str(tmp_path / "model")])
    assert load_file(tmp_path / "model" / "model.safetensors")["classifier.weight"].dtype == torch.float32


def test_nothing_is_written_without_an_image_processor(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    with pytest.raises(OSError, match="preprocessor_config"):
        main(["--to_bfloat16", str(tmp_path / "model"), "--output_dir", str(tmp_path / "half")])
    assert not (tmp_path / "half").exists()


# To the authors' layout.


def read(path):
    return torch.load(path, weights_only=True)


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


@pytest.fixture(scope="module")
def models():
    """Random models of each kind, in the setting of the authors; no two of their tensors are alike."""
    models = {}
    for cls in (NIMForPreTraining, NIMForImageClassification, NIMForRobustImageClassification):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = cls(tiny_config(norm_pix_loss=True, patch_statistics="input")).eval()
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter)
        models[cls] = model
    return models


def test_from_the_authors_and_back(tmp_path):
    """Tensors that their code has written come back as they were, but for the mask token, which nothing uses."""
    path = DATA / "nim_mae_tiny_norm_pix_true.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        shapes = json.loads(file.metadata()["config"])
    theirs = {"model": part(tensors, "denoiser."), "classifier": part(tensors, "classifier.")}
    torch.save({"model": theirs["model"]}, tmp_path / "a.pt")
    torch.save({"classifier": theirs["classifier"]}, tmp_path / "b.pt")
    heads = {
        "num_attention_heads": shapes["num_heads"],
        "decoder_num_attention_heads": shapes["decoder_num_heads"],
    }
    convert_authors_checkpoint(tmp_path / "a.pt", tmp_path / "ours", finetuned=tmp_path / "b.pt", **heads)
    files = save_authors_checkpoint(tmp_path / "ours", tmp_path / "back")
    assert [file.name for file in files] == ["pretraining.pth", "finetuned.pth"]
    back = read(files[0]) | read(files[1])
    mask_token = theirs["model"].pop("mask_token")
    zeros = back["model"].pop("mask_token")
    assert zeros.shape == mask_token.shape
    assert not zeros.any()
    for entry in ("model", "classifier"):
        assert_equal(back[entry], theirs[entry])


def test_to_the_authors_and_back(models, tmp_path):
    model = models[NIMForRobustImageClassification]
    model.save_pretrained(tmp_path / "ours")
    save_authors_checkpoint(tmp_path / "ours", tmp_path / "theirs")
    theirs = [tmp_path / "theirs" / name for name in ("pretraining.pth", "finetuned.pth")]
    convert_authors_checkpoint(theirs[0], tmp_path / "back", finetuned=theirs[1], **HEADS)
    back = NIMForRobustImageClassification.from_pretrained(tmp_path / "back")
    assert_equal(back.state_dict(), model.state_dict())
    pixels, noise = torch.randn(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    options = {"sigma": 30, "pixel_noise": noise}
    assert torch.equal(back(pixels, **options).logits, model(pixels, **options).logits)


def test_one_file_for_a_model_of_one_part(models, tmp_path):
    (pretraining,) = save_authors_checkpoint(models[NIMForPreTraining], tmp_path)
    assert pretraining.name == "pretraining.pth"
    assert_equal(convert_authors_state_dict(read(pretraining)["model"]), dict(models[NIMForPreTraining].state_dict()))
    models[NIMForImageClassification].save_pretrained(tmp_path / "classifier")
    (finetuned,) = save_authors_checkpoint(str(tmp_path / "classifier"), tmp_path / "deep" / "out")
    assert finetuned == tmp_path / "deep" / "out" / "finetuned.pth"
    weights = read(finetuned)["classifier"]
    assert "mask_token" not in weights
    assert_equal(convert_authors_state_dict(weights), dict(models[NIMForImageClassification].state_dict()))


def test_names_are_theirs(models, tmp_path):
    """Of a tiny model with as many layers as theirs, names and shapes are those of the recorded tensors."""
    theirs = load_file(DATA / "nim_mae_tiny_norm_pix_true.safetensors")
    config = tiny_config(num_hidden_layers=3, intermediate_size=128, num_labels=10, patch_statistics="input")
    config.decoder_hidden_size, config.decoder_num_hidden_layers, config.decoder_intermediate_size = 24, 2, 96
    files = save_authors_checkpoint(NIMForRobustImageClassification(config), tmp_path)
    for file, entry, prefix in zip(files, ("model", "classifier"), ("denoiser.", "classifier.")):
        ours = {name: tensor.shape for name, tensor in read(file)[entry].items()}
        assert ours == {name: tensor.shape for name, tensor in part(theirs, prefix).items()}


def test_half_precision_and_gradients(models, tmp_path):
    """Weights are written in their own dtype, and nothing of autograd or of shared memory with them."""
    model = NIMForPreTraining(models[NIMForPreTraining].config).to(torch.bfloat16)
    (file,) = save_authors_checkpoint(model, tmp_path)
    weights = read(file)["model"]
    assert weights["blocks.0.attn.qkv.weight"].dtype == torch.bfloat16
    assert weights["mask_token"].dtype == torch.bfloat16
    assert not any(tensor.requires_grad for tensor in weights.values())
    num_values = sum(tensor.numel() for tensor in weights.values())
    assert file.stat().st_size < 2 * num_values + 1000 * len(weights)


def test_command_line_to_the_authors(models, tmp_path):
    models[NIMForRobustImageClassification].save_pretrained(tmp_path / "ours")
    run = [sys.executable, "-m", "transformers_nim.conversion", "--output_dir", str(tmp_path / "out")]
    done = subprocess.run([*run, "--to_authors", str(tmp_path / "ours")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["finetuned.pth", "pretraining.pth"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to_authors", "x", "--pretraining", "y"], "not allowed with argument"),
        (["--to_authors", "x", "--finetuned", "y"], "--finetuned: not allowed with --to_authors"),
        (["--to_authors", "no/such/folder"], "no/such/folder"),
    ],
)
def test_command_line_errors(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: main([*arguments, "--output_dir", str(tmp_path / "out")]))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_models_that_their_code_does_not_know(models, tmp_path):
    for wrong, message in (
        ({"image_size": (32, 40)}, "images of 32x40 pixels"),
        ({"qkv_bias": False}, "no biases of queries"),
        ({"hidden_act": "relu"}, r"hidden_act=relu \(it has gelu\)"),
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps=1e-12"),
        ({"num_channels": 1}, "num_channels=1"),
    ):
        with pytest.raises(ValueError, match=message):
            save_authors_checkpoint(NIMForPreTraining(tiny_config(**wrong)), tmp_path / "out")
    encoder = NIMModel(tiny_config())
    with pytest.raises(ValueError, match="got a NIMModel"):
        save_authors_checkpoint(encoder, tmp_path / "out")
    encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"no NIM model with a decoder or a head, but NIMModel"):
        save_authors_checkpoint(tmp_path / "encoder", tmp_path / "out")
    other = NIMForRobustImageClassification.from_denoiser(models[NIMForPreTraining], *other_classifier("vit"))
    with pytest.raises(ValueError, match=r"is a vit.*denoiser alone by NIMForPreTraining"):
        save_authors_checkpoint(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_differences_that_tensors_do_not_show_are_warnings(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(authors.logger, "warning", said.append)
    save_authors_checkpoint(NIMForPreTraining(tiny_config(norm_pix_loss=True, patch_statistics="input")), tmp_path)
    save_authors_checkpoint(NIMForPreTraining(tiny_config(norm_pix_loss=False)), tmp_path)
    assert not said
    save_authors_checkpoint(NIMForPreTraining(tiny_config(norm_pix_loss=True)), tmp_path)
    save_authors_checkpoint(NIMForPreTraining(tiny_config(image_std=[0.5] * 3)), tmp_path)
    assert ['patch_statistics="noisy"' in said[0], "[0.5, 0.5, 0.5]" in said[1], len(said)] == [True, True, 2]


def test_wrong_weights_of_ours(models):
    weights = dict(models[NIMForPreTraining].state_dict())
    for name in ("conv1.weight", "nim.layers.0.attention.qkv.weight", "nim.layers.0.mlp.fc3.bias", "nim.pooler.bias"):
        with pytest.raises(ValueError, match=f"unexpected tensor '{name}'"):
            to_authors_state_dict(weights | {name: torch.zeros(1)})
    del weights["nim.layers.1.attention.v_proj.bias"]
    with pytest.raises(ValueError, match=r"no tensor 'nim\.layers\.1\.attention\.v_proj\.bias'"):
        to_authors_state_dict(weights)


# Files that are not of the authors' code.


def assert_refused(path, tmp_path, message, **options):
    with pytest.raises(ValueError, match=message):
        convert_authors_checkpoint(path, tmp_path / "out", **HEADS, **options)
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read(models, tmp_path):
    (file,) = save_authors_checkpoint(models[NIMForPreTraining], tmp_path)
    content = file.read_bytes()
    for length in (0, 1, 100, len(content) // 2, len(content) - 10):
        (tmp_path / "truncated.pth").write_bytes(content[:length])
        assert_refused(tmp_path / "truncated.pth", tmp_path, r"truncated\.pth cannot be read")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("notes.txt", "no checkpoint")
    assert_refused(tmp_path / "other.zip", tmp_path, r"other\.zip cannot be read")
    (tmp_path / "picture.pt").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert_refused(tmp_path / "picture.pt", tmp_path, "cannot be read")


def test_checkpoints_of_something_else(models, tmp_path):
    resnet = dict(other_classifier("resnet")[0].state_dict())
    ours = dict(models[NIMForPreTraining].state_dict())
    theirs = to_authors_state_dict(ours)
    narrow = theirs | {"blocks.0.attn.qkv.weight": torch.zeros(95, 32)}
    scalar = theirs | {"blocks.0.attn.qkv.bias": torch.tensor(0.0)}
    flat = theirs | {"patch_embed.proj.weight": torch.zeros(32, 192)}
    for content, message in (
        (resnet, r"no entry 'model' with weights; it has \[.* and \d+ more"),
        ({"model": resnet}, "unexpected tensor '.*': not a checkpoint of the authors' NIM code"),
        ({"model": ours}, "unexpected tensor 'nim"),
        ({1: 2, "a": 3}, r"no entry 'model' with weights; it has \['1', 'a'\]"),
        ({"model": {1: torch.zeros(1)}}, "unexpected tensor '1'"),
        ({"model": {"blocks": "text"}}, "something else than tensors"),
        ([torch.zeros(1)], "it has list"),
        ({"model": {}}, "not a pretraining checkpoint"),
        ({"model": narrow}, r"shape \(95, 32\) is not made of three"),
        ({"model": scalar}, r"shape \(\) is not made of three"),
        ({"model": flat}, "a tensor has the wrong shape"),
        ({"model": theirs | {"norm.weight": torch.zeros(31)}}, "do not make a whole model"),
    ):
        torch.save(content, tmp_path / "file.pt")
        assert_refused(tmp_path / "file.pt", tmp_path, message)


def test_wrong_classifiers(models, tmp_path):
    pretraining, finetuned = save_authors_checkpoint(models[NIMForRobustImageClassification], tmp_path / "theirs")
    assert_refused(pretraining, tmp_path, "no entry 'classifier'", finetuned=pretraining)
    assert_refused(finetuned, tmp_path, "no entry 'model'")
    wider = to_authors_state_dict(NIMForImageClassification(tiny_config(hidden_size=64)).state_dict())
    torch.save({"classifier": wider}, tmp_path / "wider.pt")
    assert_refused(pretraining, tmp_path, "do not make a whole model", finetuned=tmp_path / "wider.pt")
    del wider["head.weight"]
    torch.save({"classifier": wider}, tmp_path / "wider.pt")
    assert_refused(pretraining, tmp_path, "no classification head", finetuned=tmp_path / "wider.pt")


def test_paper_sizes_come_back_without_head_counts(tmp_path):
    model = NIMForPreTraining(NIMConfig.from_size("tiny", num_hidden_layers=12, decoder_num_hidden_layers=1))
    (file,) = save_authors_checkpoint(model, tmp_path)
    back = convert_authors_checkpoint(file, tmp_path / "back", norm_pix_loss=False)
    assert_equal(back.state_dict(), dict(model.state_dict()))
