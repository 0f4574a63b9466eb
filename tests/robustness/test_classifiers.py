# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from conftest import save_with_processor, tiny_model
from transformers import PreTrainedConfig, ViTConfig, ViTForImageClassification, ViTImageProcessor

from transformers_nim import NIMForRobustImageClassification, NIMImageProcessor
from transformers_nim.robustness.classifiers import classifier_maker, has_defense, load_with_processor, model_hash


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
