# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""A De^3 model inside a wrapper of PEFT or `torch.compile`: options of the defense, training, saving."""

import pytest
import torch
from conftest import random_picture, tiny_model
from transformers import pipeline

from transformers_nim import NIMForRobustImageClassification, NIMImageClassificationPipeline, NIMImageProcessor


peft = pytest.importorskip("peft")
# PEFT asks a model for it.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

OPTIONS = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"], "init_lora_weights": False}
NOT_THE_DENOISER = {"exclude_modules": r"denoiser\..*"}
WRAPPERS = {
    "compiled": lambda model: torch.compile(model),
    "peft": lambda model: adapted(model, init_lora_weights=True),
    "both": lambda model: torch.compile(adapted(model, init_lora_weights=True)),
}


def adapted(model, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = peft.LoraConfig(**{**OPTIONS, **NOT_THE_DENOISER, **options})
        return peft.get_peft_model(model, config).eval()


def images(seed=0):
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def predictions(model):
    with torch.no_grad():
        return model(images(), sigma=20, pixel_noise=images(1)).logits


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_pipeline_keeps_the_options_of_the_defense(robust_model, name, caplog):
    options = {"image_processor": NIMImageProcessor.from_config(robust_model.config), "sigma": 25, "seed": 0}
    stock = pipeline("image-classification", model=robust_model, **options)
    pipe = pipeline("image-classification", model=WRAPPERS[name](tiny_model()), **options)
    assert isinstance(pipe, NIMImageClassificationPipeline)
    assert "not supported" not in caplog.text
    picture = random_picture(0)
    calls = [{}, {"sigma": None}, {"num_samples": 3, "vote": "majority"}, {"certify": True, "n0": 4, "n": 20}]
    # The wrapper, without the time to compile.
    with torch.compiler.set_stance("force_eager"):
        for call in [*calls, {"return_denoised": True}]:
            assert pipe(picture, **call) == stock(picture, **call), call
    with pytest.raises(TypeError, match="no option 'sgima' here; did you mean 'sigma'"):
        pipe(picture, sgima=50)


def test_lora_leaves_the_denoiser_alone():
    model = adapted(tiny_model()).train()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 2 * 2 + 2, "two matrices for each of two projections in two layers, and the head"
    assert not [name for name in trained if "denoiser" in name]
    model(images(), labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if name in trained and parameter.grad is None]


def test_adapters_of_the_denoiser_are_trained_if_asked_for():
    model = adapted(tiny_model(), exclude_modules=None)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert [name for name in trained if "denoiser" in name]
    for _ in range(2):
        model.eval()
        model.train()
        assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
        model(images(), labels=torch.tensor([0, 1, 2, 3])).loss.backward()
        assert not [name for name, parameter in model.named_parameters() if name in trained and parameter.grad is None]


def test_adapters_are_saved_loaded_and_merged(tmp_path):
    model = adapted(tiny_model())
    expected = predictions(model)
    assert not torch.allclose(expected, predictions(tiny_model()), atol=1e-2)
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter").eval()
    torch.testing.assert_close(predictions(loaded), expected)
    merged = loaded.merge_and_unload()
    assert type(merged) is NIMForRobustImageClassification
    torch.testing.assert_close(predictions(merged), expected, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = NIMForRobustImageClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(predictions(again), expected, atol=1e-4, rtol=1e-4)
