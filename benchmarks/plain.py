# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""NIM and De^3 written down plainly from the papers: what the package is measured against.

The ViT is of the usual kind: one matrix for query, key and value, attention with its softmax written out, float32, and
a convolution that cuts patches. De^3 is a loop over noise draws. All take the weights of our models.
"""

import math
from typing import Any

import torch
from torch import nn

from transformers_nim import NIMConfig, NIMForPreTraining, NIMForRobustImageClassification


class Block(nn.Module):
    """A pre-norm transformer block with the weights of one of our layers."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        attention = layer.attention
        width = attention.o_proj.in_features
        self.num_heads = width // attention.head_dim
        self.norm1, self.norm2 = _norm(layer.layernorm_before), _norm(layer.layernorm_after)
        self.qkv = nn.Linear(width, 3 * width)
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        with torch.no_grad():
            self.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
            self.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
        self.proj, self.fc1, self.fc2 = (_linear(part) for part in (attention.o_proj, layer.mlp.fc1, layer.mlp.fc2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class Encoder(nn.Module):
    """A ViT with a class token and fixed positions."""

    def __init__(self, nim: Any):
        super().__init__()
        projection = nim.embeddings.patch_embeddings.projection
        self.patches = nn.Conv2d(
            projection.in_channels, projection.out_channels, projection.kernel_size, projection.stride
        )
        self.patches.load_state_dict(projection.state_dict())
        self.cls_token = nn.Parameter(nim.embeddings.cls_token.detach().clone())
        self.register_buffer("positions", nim.embeddings.position_embeddings.detach().clone())
        self.blocks = nn.Sequential(*map(Block, nim.layers))
        self.norm = nn.Identity() if isinstance(nim.layernorm, nn.Identity) else _norm(nim.layernorm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.norm(self.blocks(x))


class PlainNIM(nn.Module):
    """A denoiser with the weights of a [`NIMForPreTraining`] whose patches are not normalized."""

    def __init__(self, model: NIMForPreTraining):
        super().__init__()
        _require_plain(model.config)
        self.encoder = Encoder(model.nim)
        self.embed = _linear(model.decoder.embed)
        self.register_buffer("positions", model.decoder.position_embeddings.detach().clone())
        self.blocks = nn.Sequential(*map(Block, model.decoder.layers))
        self.norm, self.projection = _norm(model.decoder.layernorm), _linear(model.decoder.projection)
        self.patch_size, self.num_channels = model.config.patch_shape[0], model.config.num_channels
        self.register_buffer("mean", torch.tensor(model.config.image_mean)[:, None, None])
        self.register_buffer("std", torch.tensor(model.config.image_std)[:, None, None])

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
        """Return the predicted patches of normalized images under standard normal `noise`."""
        x = self.encoder(pixel_values + noise * sigma / 255 / self.std)
        return self.projection(self.norm(self.blocks(self.embed(x) + self.positions)))[:, 1:]

    def loss(self, pixel_values: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
        """Return the loss of a pretraining step."""
        size = self.patch_size
        side = pixel_values.shape[-1] // size
        target = pixel_values.reshape(-1, self.num_channels, side, size, side, size)
        target = target.permute(0, 2, 4, 3, 5, 1).reshape(len(pixel_values), side * side, -1)
        return ((self(pixel_values, noise, sigma) - target) ** 2).mean()

    def denoise(self, pixel_values: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
        """Return the denoised images, clamped to valid pixels."""
        size, channels = self.patch_size, self.num_channels
        patches = self(pixel_values, noise, sigma)
        side = math.isqrt(patches.shape[1])
        images = patches.reshape(-1, side, side, size, size, channels).permute(0, 5, 1, 3, 2, 4)
        images = images.reshape(-1, channels, side * size, side * size)
        return torch.clamp(images, -self.mean / self.std, (1 - self.mean) / self.std)


class PlainDe3(nn.Module):
    """De^3 with the weights of a [`NIMForRobustImageClassification`]: one pass for each draw."""

    def __init__(self, model: NIMForRobustImageClassification):
        super().__init__()
        self.denoiser, self.encoder = PlainNIM(model.denoiser), Encoder(model.nim)
        self.norm, self.head = _norm(model.fc_norm), _linear(model.classifier)

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
        """Return mean probabilities over noise draws.

        Args:
            pixel_values: Normalized images, shape `(batch, channels, height, width)`.
            noise: Standard normal noise, shape `(batch, draws, channels, height, width)`.
            sigma: Standard deviation of the noise, in units of 0..255 pixels.
        """
        probabilities = [
            self.draw(pixel_values, noise[:, draw], sigma).softmax(dim=-1) for draw in range(noise.shape[1])
        ]
        return torch.stack(probabilities).mean(dim=0)

    def draw(self, pixel_values: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
        """Return the logits of a single noise draw."""
        x = self.encoder(self.denoiser.denoise(pixel_values, noise, sigma))
        return self.head(self.norm(x[:, 1:].mean(dim=1)))


def _require_plain(config: NIMConfig) -> None:
    if config.norm_pix_loss or not config.qkv_bias or config.hidden_act != "gelu":
        raise ValueError(
            "the plain implementation supports norm_pix_loss=False, qkv_bias=True and hidden_act='gelu' only, got"
            f" {config.norm_pix_loss}, {config.qkv_bias} and {config.hidden_act!r}"
        )


def _linear(layer: nn.Linear) -> nn.Linear:
    copy = nn.Linear(layer.in_features, layer.out_features)
    copy.load_state_dict(layer.state_dict())
    return copy


def _norm(layer: nn.LayerNorm) -> nn.LayerNorm:
    copy = nn.LayerNorm(layer.normalized_shape, eps=layer.eps)
    copy.load_state_dict(layer.state_dict())
    return copy
