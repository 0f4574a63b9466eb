# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Tests of transformers_nim.model.layers_nim: what runs instead of torch's fused attention agrees with it."""

import pytest
import torch

from transformers_nim import NIMConfig, NIMForPreTraining
from transformers_nim.model import layers_nim


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = NIMConfig.from_size("tiny-patch4-32", num_hidden_layers=2, attn_implementation="sdpa")
    return NIMForPreTraining(config)


def loss_and_gradients(model, dtype):
    torch.manual_seed(1)
    pixel_values, noise = torch.randn(2, 4, 3, 32, 32)
    model.zero_grad()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        outputs = model(pixel_values, sigma=50.0, pixel_noise=noise)
    outputs.loss.backward()
    return outputs.loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def count_fused(monkeypatch):
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def counted(*args, **kwargs):
        calls.append(args[0].dtype)
        return fused(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    return calls


def test_bfloat16_attention_on_cpu_agrees_with_the_fused_kernel(model, monkeypatch):
    exact_loss, exact = loss_and_gradients(model, None)
    calls = count_fused(monkeypatch)
    loss, gradients = loss_and_gradients(model, torch.bfloat16)
    assert calls == []
    monkeypatch.setattr(layers_nim, "_MAX_UNFUSED_WEIGHTS", 0)
    fused_loss, fused = loss_and_gradients(model, torch.bfloat16)
    assert len(calls) == 2 + model.config.decoder_num_hidden_layers

    scale = exact.norm().item()
    assert loss == pytest.approx(fused_loss, rel=2e-3)
    assert (gradients - fused).norm().item() < 0.02 * scale
    # And it is no further from float32 than the fused kernel is.
    assert loss == pytest.approx(exact_loss, rel=5e-3)
    assert (gradients - exact).norm().item() < 1.1 * (fused - exact).norm().item() + 1e-3 * scale


def test_float32_attention_stays_fused(model, monkeypatch):
    calls = count_fused(monkeypatch)
    loss_and_gradients(model, None)
    assert calls == [torch.float32] * (2 + model.config.decoder_num_hidden_layers)


def test_unfused_attention_returns_no_weights(model):
    # As the fused kernel: weights are asked for with attn_implementation="eager".
    attention = model.nim.layers[0].attention.to(torch.bfloat16)
    output, weights = attention(torch.randn(1, 65, 192, dtype=torch.bfloat16))
    assert output.shape == (1, 65, 192)
    assert weights is None


def test_attention_is_written_out_as_long_as_memory_allows(model, monkeypatch):
    calls = count_fused(monkeypatch)
    attention = model.nim.layers[0].attention.to(torch.bfloat16)
    states = torch.randn(2, 65, 192, dtype=torch.bfloat16)
    monkeypatch.setattr(layers_nim, "_MAX_UNFUSED_WEIGHTS", 2 * 3 * 65**2)
    few, _ = attention(states)
    assert calls == []
    many, _ = attention(torch.cat([states, states]))
    assert calls == [torch.bfloat16]
    torch.testing.assert_close(many[:2], few, atol=0.02, rtol=0.02)


def test_exported_programs_keep_the_fused_kernel(model):
    attention = model.nim.layers[0].attention.to(torch.bfloat16).eval()
    tokens = torch.export.Dim("tokens", min=2, max=4096)
    program = torch.export.export(
        attention, (torch.randn(1, 65, 192, dtype=torch.bfloat16),), dynamic_shapes=({1: tokens},)
    )
    assert any("scaled_dot_product_attention" in str(node.target) for node in program.graph.nodes)
    states = torch.randn(1, 30, 192, dtype=torch.bfloat16)
    torch.testing.assert_close(program.module()(states)[0], attention(states)[0], atol=0.02, rtol=0.02)


def test_checkpointed_activations_give_the_same_gradients(model):
    model.train()
    loss, gradients = loss_and_gradients(model, torch.bfloat16)
    # Renamed in transformers 5.23.
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
    again, checkpointed = loss_and_gradients(model, torch.bfloat16)
    assert again == loss
    torch.testing.assert_close(checkpointed, gradients)
