# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The masked autoencoder, compared with transformers' ViT-MAE of the same weights."""

import doctest

import pytest
import torch
from conftest import tiny_config
from vit_mae_reference import random_vit_mae

from transformers_nim import NIMForPreTraining
from transformers_nim.conversion.vit_mae import convert_vit_mae_state_dict
from transformers_nim.training import mae as masked
from transformers_nim.training.mae import MaskedAutoencoder


OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-5


def pair(norm_pix_loss=False, mask_ratio=0.75, attention="sdpa"):
    """transformers' model and ours with the same weights."""
    theirs = random_vit_mae(norm_pix_loss=norm_pix_loss, mask_ratio=mask_ratio)
    theirs.set_attn_implementation(attention)
    model = NIMForPreTraining(tiny_config(norm_pix_loss=norm_pix_loss))
    model.load_state_dict(convert_vit_mae_state_dict(theirs.state_dict()))
    model.set_attn_implementation(attention)
    ours = MaskedAutoencoder(model.eval(), mask_ratio)
    with torch.no_grad():
        ours.mask_token.copy_(theirs.decoder.mask_token)
    return theirs, ours


def tiny_mae(mask_ratio=0.75, **overrides) -> MaskedAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MaskedAutoencoder(NIMForPreTraining(tiny_config(**overrides)), mask_ratio)


@pytest.fixture(scope="module")
def pixel_values():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def mask_scores():
    return torch.rand(3, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("mask_ratio", [0.75, 0.4])
@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_agrees_with_vit_mae(pixel_values, mask_scores, norm_pix_loss, mask_ratio, attention):
    theirs, ours = pair(norm_pix_loss, mask_ratio, attention)
    expected, actual = theirs(pixel_values, noise=mask_scores), ours(pixel_values, mask_scores)
    assert torch.equal(actual.mask, expected.mask.bool())
    torch.testing.assert_close(actual.logits, expected.logits, rtol=0, atol=OUTPUT_TOLERANCE)
    torch.testing.assert_close(actual.loss, expected.loss, rtol=OUTPUT_TOLERANCE, atol=0)

    expected.loss.backward()
    actual.loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    token = gradients.pop("decoder.mask_token")
    of_ours = {name: parameter.grad for name, parameter in ours.model.named_parameters()}
    of_theirs = convert_vit_mae_state_dict(gradients)
    assert of_ours.keys() == of_theirs.keys()
    for name, gradient in [*of_theirs.items(), ("mask token", token)]:
        difference = of_ours.get(name, ours.mask_token.grad) - gradient
        assert difference.abs().max() <= GRADIENT_TOLERANCE * max(1, gradient.abs().max()), name


def test_draws_the_same_masks_as_vit_mae(pixel_values):
    theirs, ours = pair()
    torch.manual_seed(5)
    expected = theirs(pixel_values)
    torch.manual_seed(5)
    actual = ours(pixel_values)
    assert torch.equal(actual.mask, expected.mask.bool())
    torch.testing.assert_close(actual.loss, expected.loss, rtol=OUTPUT_TOLERANCE, atol=0)
    assert not torch.equal(ours(pixel_values).mask, actual.mask)


def test_smallest_scores_stay_visible(pixel_values):
    scores = torch.arange(16.0).repeat(3, 1)
    scores[1] = scores[1].flip(0)
    mask = tiny_mae()(pixel_values, scores).mask
    visible = [(~row).nonzero().flatten().tolist() for row in mask]
    assert visible == [[0, 1, 2, 3], [12, 13, 14, 15], [0, 1, 2, 3]]
    # Ties go to the first patches, on every device.
    assert (~tiny_mae()(pixel_values, torch.zeros(3, 16)).mask).nonzero()[:, 1].tolist() == [0, 1, 2, 3] * 3


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_images_of_the_output(pixel_values, mask_scores, norm_pix_loss, monkeypatch):
    model = tiny_mae(norm_pix_loss=norm_pix_loss)
    patches = model.model._patchify(pixel_values)
    if norm_pix_loss:
        patches = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    monkeypatch.setattr(model.model.decoder, "decode", lambda tokens, grid: patches)
    outputs = model(pixel_values, mask_scores)
    # What is predicted perfectly costs nothing and gives the image back.
    assert outputs.loss < 1e-10
    torch.testing.assert_close(outputs.reconstructed_pixel_values, pixel_values)
    hidden = outputs.mask.view(3, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    torch.testing.assert_close(outputs.masked_pixel_values, pixel_values * ~hidden, rtol=0, atol=0)
    assert outputs.mask.sum(dim=1).tolist() == [12, 12, 12]


def test_hidden_patches_are_not_seen(pixel_values, mask_scores):
    model = tiny_mae().eval()
    first = model(pixel_values, mask_scores)
    hidden = first.masked_pixel_values == 0
    other = model(torch.where(hidden, torch.randn_like(pixel_values), pixel_values), mask_scores)
    assert torch.equal(other.logits, first.logits)
    assert other.loss != first.loss
    other = model(torch.where(hidden, pixel_values, -pixel_values), mask_scores)
    assert not torch.allclose(other.logits, first.logits)


def test_loss_is_that_of_hidden_patches(pixel_values, mask_scores):
    """Wrong visible patches cost nothing."""
    model = tiny_mae()
    outputs = model(pixel_values, mask_scores)
    outputs.logits.retain_grad()
    outputs.loss.backward()
    has_gradient = outputs.logits.grad.abs().sum(dim=-1) > 0
    assert torch.equal(has_gradient, outputs.mask)


def test_every_parameter_is_trained_also_with_checkpointing(pixel_values, mask_scores):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_mae(norm_pix_loss=True).train()
        if checkpointing:
            nim = model.model
            getattr(nim, "activation_checkpointing_enable", nim.gradient_checkpointing_enable)()
            assert model.model.nim.layers[0].gradient_checkpointing
            assert model.model.decoder.layers[0].gradient_checkpointing
        model(pixel_values, mask_scores).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys() == dict(model.named_parameters()).keys()
    for name, gradient in plain.items():
        # A key's bias shifts all scores of a query alike, which attention does not notice.
        assert name.endswith("k_proj.bias") or gradient.abs().max() > 0, name
        torch.testing.assert_close(checkpointed[name], gradient)


def test_distributed(pixel_values, mask_scores, tmp_path):
    """DistributedDataParallel complains in the second step about parameters that had no part in the first."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(tiny_mae())
        for _ in range(3):
            model(pixel_values, mask_scores).loss.backward()
    finally:
        torch.distributed.destroy_process_group()


def test_half_precision(pixel_values, mask_scores):
    model = tiny_mae(norm_pix_loss=True)
    expected = model(pixel_values, mask_scores).loss
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(pixel_values, mask_scores)
    outputs.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert outputs.logits.dtype == torch.bfloat16
    for loss in (outputs.loss, model.to(torch.bfloat16)(pixel_values, mask_scores).loss):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)


def test_fits_a_few_images():
    """Patches of one random color each: hidden ones can be told only by who remembers the images."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randn(2, 3, 4, 4, generator=generator)
    pixel_values = torch.nn.functional.interpolate(blocks, size=(32, 32), mode="nearest")
    model = tiny_mae(mask_ratio=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(300):
        loss = model(pixel_values, torch.rand(2, 16, generator=generator)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.1 * sum(losses[:10]), (losses[:10], losses[-10:])


def test_what_is_saved_is_a_nim_model(pixel_values, tmp_path):
    mae = tiny_mae().eval()
    mae.model.save_pretrained(tmp_path)
    loaded, info = NIMForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(loaded(pixel_values, sigma=0).logits, mae.model(pixel_values, sigma=0).logits)


def test_mask_token_starts_as_the_config_says():
    token = tiny_mae(decoder_hidden_size=512, initializer_range=0.1).mask_token
    assert token.shape == (1, 1, 512)
    assert 0.08 < token.std() < 0.12


@pytest.mark.parametrize("mask_ratio", [0.0, 1.0, -0.5, 0.95, 1e-20, float("nan")])
def test_mask_ratios_that_leave_nothing_to_do(mask_ratio):
    with pytest.raises(ValueError, match=rf"mask_ratio must be in \(0, 1\).*got {mask_ratio}"):
        tiny_mae(mask_ratio)


def test_extreme_mask_ratios(pixel_values):
    for mask_ratio, hidden in ((1 / 16, 1), (15 / 16, 15)):
        outputs = tiny_mae(mask_ratio)(pixel_values)
        assert outputs.mask.sum(dim=1).tolist() == [hidden] * 3
        assert outputs.loss.isfinite()


def test_wrong_shapes(pixel_values):
    model = tiny_mae()
    with pytest.raises(ValueError, match=r"mask_scores must have the shape .*\(3, 16\), got \(3, 17\)"):
        model(pixel_values, torch.rand(3, 17))
    with pytest.raises(ValueError, match=r"got \(1, 16\)"):
        model(pixel_values, torch.rand(1, 16))
    with pytest.raises(ValueError, match="32x32 pixels, got 64x64"):
        model(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="a single image needs"):
        model(pixel_values[0])


def test_images_that_are_not_square():
    model = tiny_mae(image_size=[16, 32], norm_pix_loss=True)
    outputs = model(torch.randn(2, 3, 16, 32))
    assert outputs.mask.shape == (2, 8)
    assert outputs.reconstructed_pixel_values.shape == (2, 3, 16, 32)


def test_example_runs():
    (test,) = doctest.DocTestFinder(recurse=False).find(
        MaskedAutoencoder, "MaskedAutoencoder", module=masked, globs={}
    )
    test.examples[-1].want = test.examples[-1].want.replace("```\n", "")
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0
