# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Conversion of the authors' checkpoints, and through it parity with the authors' code."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import save_with_processor, tiny_config, tiny_model
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification

from transformers_nim import (
    NIMConfig,
    NIMForImageClassification,
    NIMForPreTraining,
    NIMForRobustImageClassification,
    NIMImageProcessor,
)
from transformers_nim.conversion.__main__ import main
from transformers_nim.conversion.authors import (
    config_from_weights,
    convert_authors_checkpoint,
    convert_authors_state_dict,
    load_authors_checkpoint,
)


DATA = Path(__file__).parents[1] / "golden"
# Relative to the largest value of a tensor, on CPU in float32.
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4


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


def test_command_line(golden, tmp_path):
    _, folder = golden
    arguments = ["--pretraining", str(folder / "pretraining.pt"), "--finetuned", str(folder / "finetuned.pt")]
    arguments += ["--output_dir", str(tmp_path / "out"), "--num_attention_heads", "4"]
    run = [sys.executable, "-m", "transformers_nim.conversion", *arguments]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--decoder_num_attention_heads" in done.stderr
    assert not (tmp_path / "out").exists()
    done = subprocess.run([*run, "--decoder_num_attention_heads", "3"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
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
        main(["--to_bfloat16", str(tmp_path / "nothing"), "--output_dir", str(tmp_path / "half")])
    assert "nothing" in capsys.readouterr().err
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(SystemExit):
        main(["--to_bfloat16", str(tmp_path / "vit"), "--output_dir", str(tmp_path / "half")])
    assert "holds no NIM model" in capsys.readouterr().err
    assert not (tmp_path / "half").exists()


def test_exact_weights_are_not_overwritten_by_rounded_ones(tmp_path, capsys):
    save_with_processor(tiny_model(), tmp_path / "model")
    with pytest.raises(SystemExit):
        main(["--to_bfloat16", str(tmp_path / "model"), "--output_dir", str(tmp_path / "model")])
    assert "holds the only copy" in capsys.readouterr().err
    assert load_file(tmp_path / "model" / "model.safetensors")["classifier.weight"].dtype == torch.float32


def test_nothing_is_written_without_an_image_processor(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit):
        main(["--to_bfloat16", str(tmp_path / "model"), "--output_dir", str(tmp_path / "half")])
    assert not (tmp_path / "half").exists()
