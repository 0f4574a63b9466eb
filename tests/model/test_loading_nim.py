# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Saving, loading, and loading one kind of checkpoint into another kind of model."""

import logging
import subprocess
import sys

import pytest
import torch
from conftest import tiny_config, tiny_model
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from transformers_nim import NIMForImageClassification, NIMForPreTraining, NIMForRobustImageClassification, NIMModel


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
    assert all(name.startswith("denoiser.") for name in info["missing_keys"])
    assert "has no denoiser" in report.text
    assert "sigma=None" in report.text
    model.save_pretrained(tmp_path)
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
        with pytest.raises(Exception, match=r"(?i)safetensor|header|incomplete|deserializ"):
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
