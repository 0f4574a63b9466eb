# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The blocks of NIM: embeddings, transformer layers and the decoder.

Layout and names are those of transformers' ViT. Its blocks are not reused, because they changed between releases.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_nim import NIMConfig


def sincos_position_embeddings(width: int, grid: tuple[int, int]) -> torch.Tensor:
    """Compute fixed 2-D sine-cosine position embeddings (MAE, arXiv 2111.06377), after a zero row for the CLS token.

    The layout of a row is [sin of column | cos of column | sin of row | cos of row].

    Args:
        width: Embedding width, a multiple of 4.
        grid: Rows and columns of patches.

    Returns:
        Tensor of shape `(1, 1 + rows * columns, width)`.
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width / 4))
    rows, columns = (torch.arange(size, dtype=torch.float64, device="cpu") for size in grid)
    angles = [columns.repeat(grid[0])[:, None] * frequencies, rows.repeat_interleave(grid[1])[:, None] * frequencies]
    table = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64, device="cpu"), table]).to(torch.float32)[None]


def resize_position_embeddings(table: torch.Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> torch.Tensor:
    """Interpolate position embeddings (bicubic), shape `(1, 1 + rows * columns, width)`, to another grid."""
    if grid == new_grid:
        return table
    patches = table[:, 1:].to(torch.float32).unflatten(1, grid).permute(0, 3, 1, 2)
    patches = nn.functional.interpolate(patches, size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


class NIMPatchEmbeddings(nn.Module):
    """Cut images of shape `(batch, channels, height, width)` into patches and project each to `hidden_size`."""

    def __init__(self, config: NIMConfig):
        super().__init__()
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_shape, stride=config.patch_shape
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


class NIMEmbeddings(nn.Module):
    """CLS token, patch embeddings and position embeddings, which only classifiers train."""

    def __init__(self, config: NIMConfig, trainable_position_embeddings: bool):
        super().__init__()
        self.config = config
        self.grid = config.patch_grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embeddings = NIMPatchEmbeddings(config)
        table = sincos_position_embeddings(config.hidden_size, self.grid)
        # A fixed table is a buffer, because from_pretrained makes every parameter trainable.
        if trainable_position_embeddings:
            self.position_embeddings = nn.Parameter(table.to(torch.get_default_dtype()))
        else:
            self.register_buffer("position_embeddings", table)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> torch.Tensor:
        new_grid = check_image_shape(self.config, pixel_values, interpolate_pos_encoding)
        positions = resize_position_embeddings(self.position_embeddings, self.grid, new_grid)
        patches = self.patch_embeddings(pixel_values)
        positions = positions.to(patches.dtype)
        # Adding before the concatenation saves one pass over the patches.
        cls_tokens = (self.cls_token + positions[:, :1]).to(patches.dtype).expand(patches.shape[0], -1, -1)
        return self.dropout(torch.cat([cls_tokens, patches + positions[:, 1:]], dim=1))


def check_image_shape(config: NIMConfig, pixel_values: torch.Tensor, interpolate: bool) -> tuple[int, int]:
    """Return the rows and columns of patches of a batch of images.

    Raises:
        ValueError: The images do not fit the model.
    """
    if pixel_values.ndim != 4:
        raise ValueError(
            "pixel_values must have the shape (batch, channels, height, width), got"
            f" {tuple(pixel_values.shape)}; a single image needs a first dimension of 1"
        )
    channels, height, width = pixel_values.shape[1:]
    if pixel_values.shape[0] == 0:
        raise ValueError("the batch holds no images")
    if channels != config.num_channels:
        raise ValueError(f"the model takes images with {config.num_channels} channels, got {channels}")
    patch_height, patch_width = config.patch_shape
    if (height, width) != config.image_shape:
        if not interpolate:
            expected = "x".join(map(str, config.image_shape))
            raise ValueError(
                f"the model takes images of {expected} pixels, got {height}x{width}; resize them (the image processor"
                " does) or pass interpolate_pos_encoding=True"
            )
        if height % patch_height or width % patch_width or not (height and width):
            raise ValueError(f"an image of {height}x{width} pixels is not divisible by {config.patch_shape} patches")
    return height // patch_height, width // patch_width


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention without a fused kernel: the reference for those, and the only one that returns weights."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


# Attention weights of a layer that may be in memory at once (32 MiB in bfloat16). More are not worth the speed.
_MAX_UNFUSED_WEIGHTS = 2**24


def _is_faster_unfused(query: torch.Tensor) -> bool:
    """Tell whether attention is faster without torch's fused kernel.

    On CPUs that kernel is slow in bfloat16, above all its backward pass (benchmarks/README.md has figures).
    """
    # An exported program may run on another device and with other shapes.
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or _is_exporting():
        return False
    batch_size, num_heads, num_tokens, _ = query.shape
    return batch_size * num_heads * num_tokens**2 <= _MAX_UNFUSED_WEIGHTS


def _is_exporting() -> bool:
    # torch.compiler.is_exporting is newer than torch 2.6.
    return getattr(torch.compiler, "is_exporting", lambda: False)()


def unfused_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, None]:
    """Compute attention without a fused kernel, with weights in the dtype of the inputs for speed."""
    # softmax computes in float32 and rounds its result.
    weights = nn.functional.softmax(query * scaling @ key.transpose(-1, -2), dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), None


class NIMAttention(nn.Module):
    """Multi-head self-attention with transformers' attention kernels."""

    def __init__(self, config: NIMConfig, hidden_size: int, num_attention_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = hidden_size // num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(hidden_size, hidden_size)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            # Xavier's bound for one matrix of width 3 * hidden_size, which these three are in the authors' code.
            projection.init_gain = math.sqrt(0.5)  # type: ignore[assignment]

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            projection(hidden_states).view(shape).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        # Read once, because looking up a field of transformers' configs takes microseconds.
        implementation = self.config._attn_implementation
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        if implementation == "sdpa" and _is_faster_unfused(query):
            attention = unfused_attention_forward
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = attention(self, query, key, value, None, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.o_proj(output.reshape(hidden_states.shape)), weights


class NIMMLP(nn.Module):
    def __init__(self, config: NIMConfig, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc2(self.activation_fn(self.fc1(hidden_states))))


class NIMDropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drop a residual branch for some images of the batch in train mode."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.rate == 0.0 or not self.training:
            return hidden_states
        keep = 1.0 - self.rate
        mask = hidden_states.new_empty((hidden_states.shape[0], 1, 1)).bernoulli_(keep)
        return hidden_states * mask / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class NIMLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer of the encoder or the decoder."""

    def __init__(
        self,
        config: NIMConfig,
        hidden_size: int,
        num_attention_heads: int,
        intermediate_size: int,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = NIMAttention(config, hidden_size, num_attention_heads)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = NIMMLP(config, hidden_size, intermediate_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = NIMDropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attended, _ = self.attention(self.layernorm_before(hidden_states), **kwargs)
        hidden_states = hidden_states + self.drop_path(self.dropout(attended))
        return hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states)))


class NIMDecoder(nn.Module):
    """The light decoder of pretraining, from encoder states to the pixels of every patch."""

    position_embeddings: torch.Tensor

    def __init__(self, config: NIMConfig):
        super().__init__()
        width = config.decoder_hidden_size
        self.grid = config.patch_grid
        self.embed = nn.Linear(config.hidden_size, width)
        self.register_buffer("position_embeddings", sincos_position_embeddings(width, self.grid))
        self.layers = nn.ModuleList(
            NIMLayer(config, width, config.decoder_num_attention_heads, config.decoder_intermediate_size)
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.projection = nn.Linear(width, math.prod(config.patch_shape) * config.num_channels)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return self.decode(self.embed(hidden_states), grid)

    def decode(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Predict patches from embedded states of shape `(batch, 1 + patches, width)`."""
        positions = resize_position_embeddings(self.position_embeddings, self.grid, grid)
        hidden_states = hidden_states + positions.to(hidden_states.dtype)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        # The CLS token is no patch.
        return self.projection(self.layernorm(hidden_states))[:, 1:]
