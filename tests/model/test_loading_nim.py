# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Saving, loading, and loading one kind of checkpoint into another kind of model."""

import json
import logging
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import tiny_config, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from transformers_nim import (
    NIMConfig,
    NIMForImageClassification,
    NIMForPreTraining,
    NIMForRobustImageClassification,
    NIMModel,
)


NEW_HEAD = {"fc_norm.weight", "fc_norm.bias", "classifier.weight", "classifier.bias"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One random model of each kind, and the folder it was saved in."""
    torch.manual_seed(0)
    models = {}
    for cls in (NIMModel, NIMForPreTraining, NIMForImageClassification, NIMForRobustImageClassification):
        # Random layer norms too, so that one that was not loaded shows.
        model = cls(tiny_config())
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        path = tmp_path_factory.mktemp(cls.__name__)
        model.eval().save_pretrained(path)
        models[cls] = model, path
    return models


def assert_same_weights(module, other):
    ours, theirs = module.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture
def report(caplog):
    """What transformers and this package log during a load."""
    loggers = [logging.getLogger(name) for name in ("transformers", "transformers_nim")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    yield caplog
    for logger in loggers:
        logger.removeHandler(caplog.handler)


@pytest.mark.parametrize(
    "cls", [NIMModel, NIMForPreTraining, NIMForImageClassification, NIMForRobustImageClassification]
)
def test_round_trip_is_exact(saved, cls, report):
    model, path = saved[cls]
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "model.safetensors"]
    loaded, info = cls.from_pretrained(path, output_loading_info=True)
    assert_same_weights(loaded, model)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert "LOAD REPORT" not in report.text
    assert not loaded.training


def test_pretraining_fills_denoiser_and_classifier(saved, report):
    pretrained, path = saved[NIMForPreTraining]
    model, info = NIMForRobustImageClassification.from_pretrained(path, num_labels=7, output_loading_info=True)
    assert_same_weights(model.denoiser, pretrained)
    encoder = {k: v for k, v in pretrained.nim.state_dict().items() if not k.startswith("layernorm.")}
    assert model.nim.state_dict().keys() == encoder.keys()
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in model.nim.state_dict().items())
    assert model.config.num_labels == 7
    assert model.config.name_or_path == str(path)
    # Exactly the head is new, and the user is told so.
    assert set(info["missing_keys"]) == NEW_HEAD
    assert not info["unexpected_keys"]
    assert all(name in report.text for name in NEW_HEAD)
    assert "denoiser." not in report.text
    assert not any(parameter.requires_grad for parameter in model.denoiser.parameters())
    assert model.nim.embeddings.position_embeddings.requires_grad
    # The copies are independent: training the classifier must not move the denoiser.
    with torch.no_grad():
        model.nim.layers[0].mlp.fc1.weight.add_(1)
    assert torch.equal(model.denoiser.nim.layers[0].mlp.fc1.weight, pretrained.nim.layers[0].mlp.fc1.weight)


def test_pretraining_starts_an_undefended_classifier(saved):
    pretrained, path = saved[NIMForPreTraining]
    model, info = NIMForImageClassification.from_pretrained(path, output_loading_info=True)
    assert set(info["missing_keys"]) == NEW_HEAD
    assert not info["unexpected_keys"]
    weight = pretrained.nim.layers[1].attention.q_proj.weight
    assert torch.equal(model.nim.layers[1].attention.q_proj.weight, weight)


def test_classifier_into_robust_and_back(saved, tmp_path, report):
    classifier, path = saved[NIMForImageClassification]
    model, info = NIMForRobustImageClassification.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"]
    assert "has no denoiser" in report.text
    assert "sigma=None" in report.text
    # Nobody is defended by a random denoiser, in train mode neither.
    assert model.denoiser is None
    pixels = torch.randn(2, 3, 32, 32)
    for mode in (False, True):
        torch.testing.assert_close(model.train(mode)(pixels).logits, classifier.train(mode)(pixels).logits)
    for wrong in ({"defense_sigma": 30}, {"denoise": True}):
        with pytest.raises(ValueError, match=f"has no denoiser, so leave out {next(iter(wrong))}="):
            NIMForRobustImageClassification.from_pretrained(path, **wrong)
    # Noise without a denoiser is asked for.
    smoothed = NIMForRobustImageClassification.from_pretrained(path, denoise=False, defense_sigma=30)
    assert smoothed.config.defense_sigma == {"type": "constant", "value": 30}
    model.save_pretrained(tmp_path)
    assert NIMForRobustImageClassification.from_pretrained(tmp_path).config.defense_sigma is None
    back, info = NIMForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_same_weights(back, classifier)


def test_denoiser_of_a_robust_checkpoint(saved):
    robust, path = saved[NIMForRobustImageClassification]
    denoiser, info = NIMForPreTraining.from_pretrained(path, output_loading_info=True)
    assert_same_weights(denoiser, robust.denoiser)
    assert not info["missing_keys"]


@pytest.mark.parametrize("source", [NIMForPreTraining, NIMForImageClassification, NIMForRobustImageClassification])
def test_encoder_of_any_checkpoint(saved, source):
    model, path = saved[source]
    encoder, info = NIMModel.from_pretrained(path, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert set(info["missing_keys"]) <= {"layernorm.weight", "layernorm.bias"}
    assert torch.equal(encoder.layers[0].mlp.fc2.bias, model.nim.layers[0].mlp.fc2.bias)
    table = model.nim.embeddings.position_embeddings
    assert torch.equal(encoder.embeddings.position_embeddings, table.detach())


def test_auto_classes_choose_what_the_checkpoint_names(saved):
    expected = {
        NIMModel: NIMForRobustImageClassification,
        NIMForPreTraining: NIMForRobustImageClassification,
        NIMForImageClassification: NIMForImageClassification,
        NIMForRobustImageClassification: NIMForRobustImageClassification,
    }
    for source, target in expected.items():
        path = saved[source][1]
        assert type(AutoModelForImageClassification.from_pretrained(path)) is target
        assert type(AutoModelForPreTraining.from_pretrained(path)) is NIMForPreTraining
        assert type(AutoModel.from_pretrained(path)) is NIMModel
    assert type(AutoModelForImageClassification.from_config(tiny_config())) is NIMForRobustImageClassification


def rewritten(path, folder, **fields):
    """A copy of a checkpoint with other fields in its config; those that are None are left out."""
    shutil.copytree(path, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


@pytest.mark.parametrize("architectures", [None, [], ["TheirOwn"], ["NIMModel"], ["NIMForImageClassification"]])
def test_weights_say_what_a_checkpoint_is(saved, architectures, tmp_path, report):
    """Not the name in its config, which `accelerate` does not write and a subclass writes otherwise."""
    pixels = torch.randn(2, 3, 32, 32)
    for cls, (model, path) in saved.items():
        folder = rewritten(path, tmp_path, architectures=architectures)
        robust = NIMForRobustImageClassification.from_pretrained(folder)
        denoiser = getattr(model, "denoiser", model if cls is NIMForPreTraining else None)
        if denoiser is None:
            assert robust.denoiser is robust.config.defense_sigma is None
        else:
            assert robust.config.defense_sigma == {"type": "constant", "value": 70}
            for other in (robust.denoiser, NIMForPreTraining.from_pretrained(folder)):
                assert_same_weights(other, denoiser)
        loaded = AutoModelForImageClassification.from_pretrained(folder)
        if cls is NIMForImageClassification:
            assert torch.equal(loaded(pixels).logits, model(pixels).logits)
        if cls is NIMForRobustImageClassification:
            if architectures == ["NIMForImageClassification"]:
                assert "has a denoiser, which is left out" in report.text
            else:
                assert_same_weights(loaded, model)


@pytest.mark.parametrize("form", ["shards", "bin", "bin shards"])
def test_what_a_checkpoint_is_in_other_files(saved, form, tmp_path):
    for cls in (NIMForPreTraining, NIMForImageClassification):
        model, path = saved[cls]
        folder = rewritten(path, tmp_path / cls.__name__, architectures=None)
        (folder / "model.safetensors").unlink()
        weights = dict(model.state_dict())
        if form == "shards":
            model.save_pretrained(folder, max_shard_size="20KB")
            rewritten(folder, folder.with_suffix(".copy"), architectures=None)
            folder = folder.with_suffix(".copy")
        elif form == "bin":
            torch.save(weights, folder / "pytorch_model.bin")
        else:
            torch.save(weights, folder / "part.bin")
            index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "part.bin")}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        loaded = AutoModelForImageClassification.from_pretrained(folder)
        assert (loaded.denoiser is None) == (cls is NIMForImageClassification)
        if loaded.denoiser is None:
            assert_same_weights(loaded, model)
        else:
            assert_same_weights(loaded.denoiser, model)


@pytest.mark.parametrize(
    ("source", "name"),
    [(NIMForRobustImageClassification, "denoiser.decoder.embed.weight"), (NIMForPreTraining, "decoder.embed.weight")],
)
def test_a_part_of_a_denoiser_is_refused(saved, source, name, tmp_path):
    path = rewritten(saved[source][1], tmp_path)
    weights = load_file(path / "model.safetensors")
    del weights[name]
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    for cls in (NIMForRobustImageClassification, NIMForPreTraining, AutoModelForImageClassification):
        with pytest.raises(ValueError, match=rf"only a part of a denoiser: 1 of .*, such as {name}"):
            cls.from_pretrained(path)


def test_a_denoiser_of_other_sizes_is_switched_off(saved, report):
    for source in (NIMForPreTraining, NIMForRobustImageClassification):
        model = NIMForRobustImageClassification.from_pretrained(
            saved[source][1], decoder_hidden_size=64, ignore_mismatched_sizes=True
        )
        assert model.config.defense_sigma is model.config.finetuning_sigma is None
        assert "the defense is off (sigma=None) until the denoiser is trained" in report.text


def test_weights_of_no_nim_model_are_told_and_defend_nobody(saved, tmp_path, report):
    path = rewritten(saved[NIMForRobustImageClassification][1], tmp_path)
    weights = load_file(path / "model.safetensors")
    save_file({f"module.{name}": w for name, w in weights.items()}, path / "model.safetensors", {"format": "pt"})
    model = NIMForRobustImageClassification.from_pretrained(path)
    assert model.denoiser is model.config.defense_sigma is None
    assert "has no denoiser (and no weights of a NIM model at all" in report.text
    assert "module.nim.embeddings.cls_token" in report.text


class TheirConfig(NIMConfig):
    model_type = "their-nim"
    their_field: int = 1


class TheirDenoiser(NIMForPreTraining):
    config_class = TheirConfig


class TheirDefense(NIMForRobustImageClassification):
    config_class = TheirConfig


def test_a_subclass_keeps_its_config(saved, tmp_path):
    TheirDenoiser(TheirConfig(**tiny_config().to_diff_dict(), their_field=2)).save_pretrained(tmp_path)
    defense = TheirDefense.from_pretrained(tmp_path)
    defense.save_pretrained(tmp_path / "defense")
    for model in (defense, TheirDefense.from_pretrained(tmp_path / "defense"),
                  TheirDenoiser.from_pretrained(tmp_path / "defense")):  # fmt: skip
        assert type(model.config) is TheirConfig
        assert model.config.their_field == 2
    assert_same_weights(TheirDenoiser.from_pretrained(tmp_path / "defense"), defense.denoiser)
    assert type(TheirDefense.from_pretrained(saved[NIMForPreTraining][1]).config) is TheirConfig


def test_reports_name_the_checkpoint(saved, report):
    _, path = saved[NIMForPreTraining]
    NIMForRobustImageClassification.from_pretrained(path)
    assert f"LOAD REPORT\x1b[0m from: {path}" in report.text or f"LOAD REPORT from: {path}" in report.text
    assert "from: None" not in report.text


def test_from_denoiser(saved):
    denoiser, denoiser_path = saved[NIMForPreTraining]
    classifier, _ = saved[NIMForImageClassification]
    model = NIMForRobustImageClassification.from_denoiser(denoiser_path, classifier, defense_sigma=33)
    assert_same_weights(model.denoiser, denoiser)
    assert torch.equal(model.classifier.weight, classifier.classifier.weight)
    assert model.config.defense_sigma == {"type": "constant", "value": 33}
    assert not model.training
    fresh = NIMForRobustImageClassification.from_denoiser(denoiser, num_labels=3)
    assert fresh.classifier.out_features == 3
    assert torch.equal(fresh.nim.layers[0].mlp.fc1.weight, denoiser.nim.layers[0].mlp.fc1.weight)
    assert denoiser.config.num_labels == 5, "the denoiser's own config is left alone"
    for argument in (denoiser, classifier):
        theirs = {tensor.data_ptr() for tensor in argument.state_dict().values()}
        both = NIMForRobustImageClassification.from_denoiser(denoiser, classifier).state_dict().values()
        assert not theirs & {tensor.data_ptr() for tensor in both}, "training one would move the other"
    wider = NIMForImageClassification(tiny_config(hidden_size=64))
    with pytest.raises(ValueError, match=r"hidden_size is 32, the classifier's is 64"):
        NIMForRobustImageClassification.from_denoiser(denoiser, wider)
    with pytest.raises(ValueError, match="hidden_act is gelu, the classifier's is relu"):
        NIMForRobustImageClassification.from_denoiser(
            denoiser, NIMForImageClassification(tiny_config(hidden_act="relu"))
        )
    with pytest.raises(ValueError, match="defense_sigma"):
        NIMForRobustImageClassification.from_denoiser(denoiser, defense_sigma=-1)
    with pytest.raises(ValueError, match="no field 'defence_sigma'"):
        NIMForRobustImageClassification.from_denoiser(denoiser, defence_sigma=1)


def test_ignore_mismatched_sizes(saved):
    model, path = saved[NIMForRobustImageClassification]
    with pytest.raises(RuntimeError, match="mismatch"):
        NIMForRobustImageClassification.from_pretrained(path, num_labels=3)
    other = NIMForRobustImageClassification.from_pretrained(path, num_labels=3, ignore_mismatched_sizes=True)
    assert other.classifier.out_features == 3
    assert torch.equal(other.nim.layers[0].mlp.fc1.weight, model.nim.layers[0].mlp.fc1.weight)
    # Another image size: the fixed tables are computed anew.
    larger = NIMForPreTraining.from_pretrained(
        saved[NIMForPreTraining][1], image_size=64, ignore_mismatched_sizes=True
    )
    fresh = NIMForPreTraining(tiny_config(image_size=64))
    assert torch.equal(larger.decoder.position_embeddings, fresh.decoder.position_embeddings)
    assert torch.equal(larger.nim.embeddings.position_embeddings, fresh.nim.embeddings.position_embeddings)


@pytest.mark.parametrize("source", [NIMForPreTraining, NIMForRobustImageClassification])
def test_dtype_and_device_map(saved, source):
    path = saved[source][1]
    assert NIMForRobustImageClassification.from_pretrained(path, dtype="auto").dtype == torch.float32
    for options in ({"dtype": torch.bfloat16}, {"dtype": "bfloat16", "device_map": {"": "cpu"}}):
        model = NIMForRobustImageClassification.from_pretrained(path, **options)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert model(torch.zeros(1, 3, 32, 32)).logits.isfinite().all()


def test_denoiser_on_disk(saved, tmp_path):
    """Weights that are read from disk when they are used give the same predictions."""
    model, path = saved[NIMForRobustImageClassification]
    places = {"nim": "cpu", "fc_norm": "cpu", "classifier": "cpu", "denoiser": "disk"}
    offloaded = NIMForRobustImageClassification.from_pretrained(path, device_map=places, offload_folder=tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    noise = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            offloaded(pixels, sigma=30, pixel_noise=noise).logits, model(pixels, sigma=30, pixel_noise=noise).logits
        )


def test_corrupt_checkpoints_are_refused(saved, tmp_path):
    source = saved[NIMForRobustImageClassification][1]
    content = (source / "model.safetensors").read_bytes()
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    weights = tmp_path / "model.safetensors"
    for broken in (content[: len(content) // 2], b"not safetensors" + content, b""):
        weights.write_bytes(broken)
        with pytest.raises(OSError, match=r"model.safetensors are damaged"):
            NIMForRobustImageClassification.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(OSError, match="no file named"):
        NIMForRobustImageClassification.from_pretrained(tmp_path)
    weights.write_bytes(content)
    (tmp_path / "config.json").unlink()
    with pytest.raises(OSError, match=r"config\.json"):
        NIMForRobustImageClassification.from_pretrained(tmp_path)


def test_variant(saved, tmp_path):
    pretrained, _ = saved[NIMForPreTraining]
    pretrained.save_pretrained(tmp_path, variant="fp16")
    model = NIMForRobustImageClassification.from_pretrained(tmp_path, variant="fp16")
    assert_same_weights(model.denoiser, pretrained)


@pytest.mark.parametrize("wrong", [{"num_samples": 0}, {"image_size": 33}, {"num_channels": 1}, {"hidden_act": "x"}])
def test_wrong_overrides_of_a_checkpoint_are_value_errors(saved, wrong):
    for cls in (NIMForPreTraining, NIMForRobustImageClassification):
        with pytest.raises(ValueError, match=next(iter(wrong)).replace("num_channels", "channels")):
            cls.from_pretrained(saved[cls][1], **wrong)


def test_wrong_config_of_a_checkpoint_is_a_value_error(saved, tmp_path):
    source = saved[NIMForRobustImageClassification][1]
    (tmp_path / "config.json").write_text(
        (source / "config.json").read_text().replace('"vote": "mean"', '"vote": "x"')
    )
    with pytest.raises(ValueError, match="vote"):
        NIMForRobustImageClassification.from_pretrained(tmp_path)


def test_saved_file_holds_each_weight_once(saved):
    model, path = saved[NIMForRobustImageClassification]
    assert load_file(path / "model.safetensors").keys() == model.state_dict().keys()


DDP = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, {tests!r})
from conftest import tiny_config
from transformers_nim import NIMForPreTraining, NIMForRobustImageClassification

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://{store}", rank=rank, world_size=2)
for cls in (NIMForPreTraining, NIMForRobustImageClassification):
    torch.manual_seed(0)
    model = DistributedDataParallel(cls(tiny_config()).train())  # find_unused_parameters=False
    torch.manual_seed(1 + rank)
    for _ in range(2):
        labels = {{}} if cls is NIMForPreTraining else {{"labels": torch.tensor([0, 1])}}
        model(torch.randn(2, 3, 32, 32), **labels).loss.backward()
    for parameter in model.parameters():
        if parameter.requires_grad:
            both = [torch.zeros_like(parameter) for _ in range(2)]
            dist.all_gather(both, parameter.grad)
            assert torch.equal(*both)
print("in step")
"""


@pytest.mark.slow
def test_ddp_has_no_unused_parameters(tmp_path):
    from pathlib import Path

    script = DDP.format(tests=str(Path(__file__).parents[1]), store=tmp_path / "store")
    ranks = [
        subprocess.Popen([sys.executable, "-c", script, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=300)[0].decode() for rank in ranks]
    assert all("in step" in output for output in outputs), outputs


def test_tiny_models_of_the_tests_have_opinions():
    """A fixture that answers the same for every picture would let many tests pass."""
    predictions = tiny_model()(torch.randn(64, 3, 32, 32), sigma=None).logits.argmax(-1)
    assert len(predictions.unique()) >= 3
