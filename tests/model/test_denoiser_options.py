# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""A denoiser that is trained along, and the same defense without any denoiser."""

import copy

import pytest
import torch
from conftest import random_picture, save_with_processor, tiny_config, tiny_model
from transformers import pipeline

from transformers_nim import (
    NIMForImageClassification,
    NIMForPreTraining,
    NIMForRobustImageClassification,
    add_noise,
)
from transformers_nim.attacks import PixelClassifier
from transformers_nim.robustness.classifiers import model_hash


@pytest.fixture(scope="module")
def smoothed():
    return tiny_model(denoise=False)


def images(num=3):
    return torch.randn(num, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_without_a_denoiser_the_noisy_image_is_classified(smoothed):
    assert smoothed.denoiser is None
    assert not [name for name in smoothed.state_dict() if name.startswith("denoiser")]
    noise = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    noisy = add_noise(images(), torch.full((3,), 40.0), noise, smoothed.config.image_std)
    found = smoothed(images(), sigma=40, pixel_noise=noise, output_draws=True)
    torch.testing.assert_close(found.logits, smoothed(noisy, sigma=None).logits)
    torch.testing.assert_close(found.denoised_pixel_values[:, 0], noisy)
    # Nothing is clamped, and nothing bypasses the noise.
    assert smoothed(images(), sigma=0).logits.allclose(smoothed(images(), sigma=None).logits, atol=1e-5)


def test_without_a_denoiser_all_else_works(smoothed, tmp_path):
    path = save_with_processor(smoothed, tmp_path / "smoothed")
    again = NIMForRobustImageClassification.from_pretrained(path)
    assert again.config.denoise is False
    assert torch.equal(again(images(), sigma=None).logits, smoothed(images(), sigma=None).logits)
    (certificate,) = again.certify(images(1), sigma=60, n0=4, n=30, generator=torch.Generator().manual_seed(0))
    assert certificate.num_draws == 34
    answer = pipeline("image-classification", model=path, sigma=50, num_samples=4, seed=0)(random_picture(0))
    assert len(answer) == 5
    classifier = PixelClassifier(smoothed, sigma=30, num_samples=4)
    assert not classifier.is_deterministic
    pixels = torch.rand(2, 3, 32, 32, requires_grad=True)
    classifier(pixels).sum().backward()
    assert pixels.grad.abs().sum() > 0


def test_patch_statistics_leak_through_a_denoiser_only():
    options = {"norm_pix_loss": True, "patch_statistics": "input"}
    with pytest.raises(ValueError, match="nothing can be certified"):
        tiny_model(**options).certify(images(1), sigma=60, n0=2, n=4)
    assert len(tiny_model(denoise=False, **options).certify(images(1), sigma=60, n0=2, n=4)) == 1


def test_it_starts_from_a_pretrained_encoder(tmp_path):
    torch.manual_seed(0)
    pretrained = NIMForPreTraining(tiny_config())
    pretrained.save_pretrained(tmp_path)
    model, info = NIMForRobustImageClassification.from_pretrained(tmp_path, denoise=False, output_loading_info=True)
    assert model.denoiser is None
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"fc_norm", "classifier"}
    theirs = pretrained.nim.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.nim.state_dict().items())


def test_a_denoiser_that_is_not_there_is_not_made_up(smoothed, tmp_path):
    smoothed.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no denoiser: it was made with denoise=False"):
        NIMForPreTraining.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="so leave out denoise=True"):
        NIMForRobustImageClassification.from_pretrained(tmp_path, denoise=True)
    with pytest.raises(ValueError, match="from_denoiser makes a model that denoises"):
        NIMForRobustImageClassification.from_denoiser(NIMForPreTraining(tiny_config()), denoise=False)
    # The bare classifier is the same model without its noise.
    bare = NIMForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(bare(images()).logits, smoothed(images(), sigma=None).logits)
    denoising = NIMForRobustImageClassification.from_denoiser(NIMForPreTraining(tiny_config()), bare)
    assert denoising.denoiser is not None


@pytest.mark.parametrize("freeze", [True, False])
def test_a_denoiser_is_trained_along_if_asked(freeze, tmp_path):
    tiny_model(freeze_denoiser=freeze).save_pretrained(tmp_path)
    model = NIMForRobustImageClassification.from_pretrained(tmp_path).train()
    assert model.config.freeze_denoiser is freeze
    assert model.denoiser.training is not freeze
    assert model.nim.training
    loss = model(images(), labels=torch.tensor([0, 1, 2]), sigma=20).loss
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert any(name.startswith("denoiser.") for name in gradients) is not freeze
    if not freeze:
        assert gradients["denoiser.decoder.embed.weight"].abs().sum() > 0
    model.eval()
    assert not model.denoiser.training


def test_fields_at_their_defaults_do_not_change_the_hash_of_a_model(robust_model):
    """Recorded results know a model by its hash, also those that are older than these fields."""
    plain = copy.deepcopy(robust_model)
    fields = plain.config.to_diff_dict()
    plain.config.to_diff_dict = lambda: {k: v for k, v in fields.items() if k not in ("denoise", "freeze_denoiser")}
    assert model_hash(plain) == model_hash(robust_model)
    assert model_hash(tiny_model(freeze_denoiser=False)) != model_hash(robust_model)
