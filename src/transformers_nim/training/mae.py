# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The masked autoencoder (MAE, arXiv 2111.06377), the baseline that NIM is compared with.

It is NIM's own encoder and decoder with another task: most patches are hidden instead of all being noisy. What differs
between two models pretrained on equal terms is then the task alone.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput

from ..model.modeling_nim import NIMForPreTraining


@dataclass
class MaskedAutoencoderOutput(ModelOutput):
    """What [`MaskedAutoencoder`] returns.

    Attributes:
        loss: Mean squared error between predicted and true patches over the hidden patches, shape `()`, float32.
        logits: The decoder's prediction for every patch, visible ones included, shape
            `(batch, num_patches, patch_height * patch_width * channels)`, pixels in the order (row, column, channel);
            normalized per patch if `config.norm_pix_loss`.
        mask: Which patches were hidden, bool, shape `(batch, num_patches)`.
        reconstructed_pixel_values: The predictions as an image, shape `(batch, channels, height, width)`, normalized
            like the input and not clamped. With `config.norm_pix_loss`, each patch has the mean and standard deviation
            of the input's patch.
        masked_pixel_values: The input with hidden patches set to 0, the mean color, in the shape of the input.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    reconstructed_pixel_values: torch.Tensor | None = None
    masked_pixel_values: torch.Tensor | None = None


class MaskedAutoencoder(nn.Module):
    """Pretrains the encoder and decoder of a [`NIMForPreTraining`] to fill in hidden patches (He et al. 2021).

    The only tensor that it adds is the mask token. `self.model` is the model that was passed in, so after training
    `self.model.save_pretrained` writes a checkpoint for all NIM classes, which have no use for the mask token.

    Args:
        model: Gives encoder, decoder and config. It is trained in place.
        mask_ratio: Share of the patches that are hidden, in (0, 1). Of L patches, `int(L * (1 - mask_ratio))` stay
            visible.

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
        """Hides patches, encodes the others, and predicts all.

        Args:
            pixel_values: Images as [`NIMImageProcessor`] makes them, of the config's size, shape
                `(batch, channels, height, width)`.
            mask_scores: Uniform random numbers of shape `(batch, num_patches)`, patches in row-major order: those with
                the smallest scores stay visible. Drawn from the global generator by default.

        Returns:
            The loss, the predictions and the mask.

        Raises:
            ValueError: The images or the scores have the wrong shape.
        """
        nim, decoder = self.model.nim, self.model.decoder
        # Positions are part of what is embedded, so a visible patch knows where it is.
        embedded = nim.embeddings(pixel_values.to(self.mask_token.dtype), False)
        visible, mask = self._draw_mask(embedded, mask_scores)

        hidden_states = embedded.gather(1, visible[:, :, None].expand(-1, -1, embedded.shape[-1]))
        for layer in nim.layers:
            hidden_states = layer(hidden_states)
        tokens = decoder.embed(nim.layernorm(hidden_states))
        # The decoder's input is mask tokens everywhere, overwritten where something was seen.
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
        """How many patches of an image are encoded, by MAE's own rounding."""
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
        """Positions in the sequence of CLS and visible patches, and which patches are hidden."""
        shape = (embedded.shape[0], embedded.shape[1] - 1)
        if mask_scores is None:
            mask_scores = torch.rand(shape, device=embedded.device)
        elif mask_scores.shape != shape:
            raise ValueError(
                f"mask_scores must have the shape (batch, num_patches), here {shape}, got {tuple(mask_scores.shape)}"
            )
        # A stable order makes the mask a function of the scores on every device, ties included.
        order = mask_scores.to(embedded.device).argsort(dim=1, stable=True)
        kept = order[:, : self._num_visible()]
        mask = torch.ones(shape, dtype=torch.bool, device=embedded.device).scatter(1, kept, False)
        return torch.cat([torch.zeros_like(kept[:, :1]), kept + 1], dim=1), mask

    def _to_images(self, patches: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self.model._unpatchify(patches, self.config.patch_grid).to(dtype)


__all__ = ["MaskedAutoencoder", "MaskedAutoencoderOutput"]
