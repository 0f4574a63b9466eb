# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Tiny masked autoencoders of transformers, the reference for what is made of them or does as they do."""

import torch
from conftest import tiny_config
from transformers import ViTMAEConfig, ViTMAEForPreTraining


_SHARED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
)


def vit_mae_config(**overrides) -> ViTMAEConfig:
    """As large as `conftest.tiny_config`."""
    ours = tiny_config()
    return ViTMAEConfig(**{**{name: getattr(ours, name) for name in _SHARED}, **overrides})


def random_vit_mae(**overrides) -> ViTMAEForPreTraining:
    """Random values everywhere: a new ViT-MAE has position embeddings of zeros, which would hide mistakes."""
    model = ViTMAEForPreTraining(vit_mae_config(**overrides))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()
