# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Pretrain a masked autoencoder (MAE, arXiv 2111.06377), the baseline of NIM.

It has NIM's encoder and decoder and another task: most patches are hidden, instead of all being noisy. So two models
that are pretrained alike differ by the task alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput

from ..model.configuration_nim import NIMConfig
from ..model.modeling_nim import NIMForPreTraining


@dataclass
class MaskedAutoencoderOutput(ModelOutput):
    """Output of [`MaskedAutoencoder`].

    Attributes:
        loss: Mean squared error of the hidden patches, shape `()`, float32.
        logits: Prediction of the decoder for every patch, visible or hidden, shape
            `(batch, num_patches, patch_height * patch_width * channels)`, pixels in the order (row, column, channel);
            normalized per patch if `config.norm_pix_loss`.
        mask: True where a patch is hidden, shape `(batch, num_patches)`.
        reconstructed_pixel_values: Prediction as an image, shape `(batch, channels, height, width)`, normalized like
            the input and not clamped. With `config.norm_pix_loss`, each patch has the mean and standard deviation of
            the input's patch.
        masked_pixel_values: Input with hidden patches set to 0, the mean color, in the shape of the input.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    reconstructed_pixel_values: torch.Tensor | None = None
    masked_pixel_values: torch.Tensor | None = None


class MaskedAutoencoder(nn.Module):
    """Pretrain the encoder and decoder of a [`NIMForPreTraining`] to fill in hidden patches (He et al. 2021).

    It adds a single tensor, the mask token. `self.model` is the model that was passed in: after training,
    `self.model.save_pretrained` writes a checkpoint for all NIM classes, without the mask token.

    Args:
        model: Model whose encoder and decoder are trained in place.
        mask_ratio: Share of the patches to hide, in (0, 1). Of L patches, `int(L * (1 - mask_ratio))` stay visible.

    Raises:
        ValueError: The mask ratio hides no patch or all of them.

    Example:

    ```python
    >>> import torch
    >>> from transformers_nim import NIMConfig, NIMForPreTraining
    >>> from transformers_nim.training.mae import MaskedAutoencoder

    >>> model = MaskedAutoencoder(NIMForPreTraining(NIMConfig.from_size("tiny-patch4-32")))
    >>> outputs = model(torch.randn(2, 3, 32, 32))
    >>> outputs.mask.sum(dim=1).tolist()
    [48, 48]
    >>> outputs.loss.backward()
    ```
    """

    def __init__(self, model: NIMForPreTraining, mask_ratio: float = 0.75):
        super().__init__()
        self.model = model
        self.config = model.config
        self.mask_ratio = mask_ratio
        self._num_visible()
        weight = model.decoder.embed.weight
        self.mask_token = nn.Parameter(weight.new_empty(1, 1, self.config.decoder_hidden_size))
        nn.init.normal_(self.mask_token, std=self.config.initializer_range)

    def forward(self, pixel_values: torch.Tensor, mask_scores: torch.Tensor | None = None) -> MaskedAutoencoderOutput:
        """Hide patches, encode the others, and predict all.

        Args:
            pixel_values: Images from [`NIMImageProcessor`], of the config's size, shape
                `(batch, channels, height, width)`.
            mask_scores: Uniform random numbers of shape `(batch, num_patches)`, patches in row-major order, see
                [`draw_mask_scores`]; patches with the smallest scores stay visible. Drawn from the global generator by
                default.

        Returns:
            Loss, predictions and mask.

        Raises:
            ValueError: The images or the scores have the wrong shape.
        """
        nim, decoder = self.model.nim, self.model.decoder
        # Embeddings include positions, so a visible patch knows its place.
        embedded = nim.embeddings(pixel_values.to(self.mask_token.dtype), False)
        visible, mask = self._draw_mask(embedded, mask_scores)

        hidden_states = embedded.gather(1, visible[:, :, None].expand(-1, -1, embedded.shape[-1]))
        for layer in nim.layers:
            hidden_states = layer(hidden_states)
        tokens = decoder.embed(nim.layernorm(hidden_states))
        # The decoder sees mask tokens, overwritten where a patch is visible.
        canvas = self.mask_token.to(tokens.dtype).expand(*embedded.shape[:2], -1)
        canvas = canvas.scatter(1, visible[:, :, None].expand_as(tokens), tokens)
        logits = decoder.decode(canvas, self.config.patch_grid)

        pixels = self.model._patchify(pixel_values.to(torch.float32))
        predicted = reconstructed = logits.to(torch.float32)
        if self.config.norm_pix_loss:
            mean, std = self.model._patch_statistics(pixels)
            reconstructed = predicted * std + mean
        errors = (predicted - self.model.patch_targets(pixel_values)).square().mean(dim=-1)
        masked = pixels.masked_fill(mask[:, :, None], 0.0)
        return MaskedAutoencoderOutput(
            loss=(errors * mask).sum() / mask.sum(),
            logits=logits,
            mask=mask,
            reconstructed_pixel_values=self._to_images(reconstructed, pixel_values.dtype),
            masked_pixel_values=self._to_images(masked, pixel_values.dtype),
        )

    def extra_repr(self) -> str:
        return f"mask_ratio={self.mask_ratio:g}"

    def _num_visible(self) -> int:
        """Return how many patches of an image are encoded, rounded as in MAE."""
        rows, columns = self.config.patch_grid
        num_patches = rows * columns
        num_visible = int(num_patches * (1 - self.mask_ratio)) if 0 < self.mask_ratio < 1 else 0
        if not 0 < num_visible < num_patches:
            raise ValueError(
                f"mask_ratio must be in (0, 1) and leave visible patches, of which there are int({num_patches} *"
                f" (1 - mask_ratio)); got {self.mask_ratio}"
            )
        return num_visible

    def _draw_mask(
        self, embedded: torch.Tensor, mask_scores: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the positions of CLS and visible patches in the sequence, and which patches are hidden."""
        shape = (embedded.shape[0], embedded.shape[1] - 1)
        if mask_scores is None:
            mask_scores = torch.rand(shape, device=embedded.device)
        elif mask_scores.shape != shape:
            raise ValueError(
                f"mask_scores must have the shape (batch, num_patches), here {shape}, got {tuple(mask_scores.shape)}"
            )
        # A stable sort gives the same mask on every device, also for equal scores.
        order = mask_scores.to(embedded.device).argsort(dim=1, stable=True)
        kept = order[:, : self._num_visible()]
        mask = torch.ones(shape, dtype=torch.bool, device=embedded.device).scatter(1, kept, False)
        return torch.cat([torch.zeros_like(kept[:, :1]), kept + 1], dim=1), mask

    def _to_images(self, patches: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self.model._unpatchify(patches, self.config.patch_grid).to(dtype)


def draw_mask_scores(config: NIMConfig, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Return uniform random numbers that decide which patches are hidden.

    Args:
        config: Config of the model; gives the number of patches.
        generators: One generator per image, all on one device.

    Returns:
        Numbers of shape `(batch, num_patches)` on the generators' device.
    """
    rows, columns = config.patch_grid
    return torch.stack([torch.rand(rows * columns, generator=each, device=each.device) for each in generators])


def draw_mask(shape: torch.Size, generator: torch.Generator, config: NIMConfig) -> dict[str, torch.Tensor]:
    """Draw the `mask_scores` of one training image, as [`training_batches`] takes it once `config` is bound."""
    return {"mask_scores": draw_mask_scores(config, [generator])[0]}


__all__ = ["MaskedAutoencoder", "MaskedAutoencoderOutput", "draw_mask", "draw_mask_scores"]
