# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import json
import shutil

import pytest
import torch
from conftest import save_with_processor, tiny_config, tiny_model
from transformers import PreTrainedConfig, ViTConfig, ViTForImageClassification, ViTImageProcessor

from transformers_nim import NIMForPreTraining, NIMForRobustImageClassification, NIMImageProcessor
from transformers_nim.attacks import PixelClassifier
from transformers_nim.robustness.classifiers import (
    classifier_maker,
    has_defense,
    load_with_processor,
    make_subject,
    model_hash,
)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_any_classifier_is_loaded_with_its_processor(tmp_path, model):
    save_with_processor(model, tmp_path / "nim")
    loaded, processor = load_with_processor(str(tmp_path / "nim"), torch.device("cpu"))
    assert isinstance(loaded, NIMForRobustImageClassification)
    assert not loaded.training
    assert has_defense(loaded)
    assert model_hash(loaded) == model_hash(model)
    assert list(processor.image_mean) == list(model.config.image_mean)

    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    vit = ViTForImageClassification(config)
    vit.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path / "vit")
    loaded, processor = load_with_processor(str(tmp_path / "vit"), torch.device("cpu"))
    assert not has_defense(loaded)
    make = classifier_maker(loaded, processor, seed=0)
    pixels = torch.rand(2, 3, 32, 32)
    values = (pixels - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor(processor.image_std)[:, None, None]
    with torch.no_grad():
        assert torch.allclose(make(None, "full", False)(pixels), loaded(values).logits, atol=1e-6)
    with pytest.raises(ValueError, match="has no defense, so sigma must be None, got 25"):
        make(25.0, "full", False)


def test_known_noise_is_the_same_for_attack_and_defense(model):
    make = classifier_maker(model, NIMImageProcessor.from_config(model.config), seed=3)
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        first, second = (make(30.0, "full", True)(pixels) for _ in range(2))
        other = classifier_maker(model, NIMImageProcessor.from_config(model.config), seed=4)(30.0, "full", True)
        assert torch.equal(first, second)
        assert not torch.equal(first, other(pixels))


def test_the_hash_of_a_model_changes_with_a_weight_and_a_setting(model):
    other = tiny_model()
    assert model_hash(other) == model_hash(model)
    other.config.defense_sigma = 33
    changed = model_hash(other)
    assert changed != model_hash(model)
    with torch.no_grad():
        other.classifier.bias[0] += 1e-6
    assert model_hash(other) != changed


def test_the_hash_of_a_model_stays_when_transformers_adds_a_field_to_configs(model, monkeypatch):
    before, to_dict = model_hash(model), PreTrainedConfig.to_dict
    monkeypatch.setattr(
        PreTrainedConfig, "to_dict", lambda config: {**to_dict(config), "new_in_a_later_version": None}
    )
    assert "new_in_a_later_version" in model.config.to_dict()
    assert model_hash(model) == before


class Noisy(torch.nn.Module):
    def __init__(self, scale=0.1, layers=(1, 2)):
        super().__init__()
        self.inner = torch.nn.Linear(2, 2)
        torch.nn.init.ones_(self.inner.weight)
        torch.nn.init.zeros_(self.inner.bias)
        self.inner.scale, self.layers, self._calls = scale, layers, 0


class Other(Noisy):
    def _get_name(self):
        return "Noisy"


def test_the_hash_of_a_module_changes_with_its_plain_attributes_and_its_class():
    hashes = [model_hash(one) for one in (Noisy(), Noisy(0.2), Noisy(None), Noisy(layers=[1, "a"]), Other())]
    assert len(set(hashes)) == 5
    same = Noisy().eval()
    same._calls, same.tool = 3, object()
    assert model_hash(same) == hashes[0]


class WithExtra(torch.nn.Module):
    def forward(self, pixels, extra=1):
        return extra * pixels.flatten(1)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"gradient": "bpda"}, "gradient='bpda'"), ({"fixed_noise": True}, "fixed_noise=True"),
        ({"autocast_dtype": torch.bfloat16}, "autocast_dtype=torch.bfloat16"),
    ],
)  # fmt: skip
def test_options_of_a_pixel_classifier_that_would_be_dropped_are_refused(model, options, name):
    with pytest.raises(ValueError, match=f"an evaluation cannot keep {name} of the PixelClassifier"):
        make_subject(model.as_pixel_classifier(**options))
    extra = PixelClassifier(WithExtra().eval(), extra=2)
    with pytest.raises(ValueError, match="cannot keep extra=2"):
        make_subject(extra)
    kept = make_subject(model.as_pixel_classifier(sigma=20, num_samples=2, vote="majority"))
    assert kept.options == {"sigma": 20, "num_samples": 2, "vote": "majority"}


def test_what_is_no_trained_classifier_is_refused(vit_path, tmp_path):
    NIMForPreTraining(tiny_config()).save_pretrained(tmp_path / "denoiser")
    with pytest.raises(ValueError, match="is no trained image classifier: it has no weights for"):
        load_with_processor(str(tmp_path / "denoiser"), torch.device("cpu"))
    shutil.copytree(vit_path, tmp_path / "vit")
    processor = tmp_path / "vit" / "preprocessor_config.json"
    content = json.loads(processor.read_text()) | {"image_processor_type": "AutoImageProcessor"}
    processor.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is of no class: image_processor_type"):
        load_with_processor(str(tmp_path / "vit"), torch.device("cpu"))
