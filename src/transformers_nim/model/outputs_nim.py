# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Outputs of the NIM models, and how the predictions of several noise draws are combined."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput, auto_docstring


_ADVICE = (
    "a {} is no tensor of logits: take its .logits; for an attack or another library that takes a model from pixels"
    " to logits, pass model.as_pixel_classifier(sigma=...)"
)


@dataclass
@auto_docstring(custom_intro="Output of [`NIMForPreTraining`].")
class NIMForPreTrainingOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`):
        Mean squared error between predicted and clean patches, over all patches.
    logits (`torch.FloatTensor` of shape `(batch_size, num_patches, patch_height * patch_width * num_channels)`):
        The decoder's prediction for each patch, pixels in the order (row, column, channel). Normalized per patch if
        `config.norm_pix_loss`.
    denoised_pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
        The denoised images, normalized like the input and not clamped.
    noisy_pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
        The images with noise added.
    sigma (`torch.FloatTensor` of shape `(batch_size,)`):
        The noise scale of each image in units of 0..255 pixels.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    denoised_pixel_values: torch.Tensor | None = None
    noisy_pixel_values: torch.Tensor | None = None
    sigma: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class _LogitsExpected:
    """An output that tells attack libraries, which expect a tensor of logits, how to get one."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise TypeError(f"{getattr(function, '__name__', function)}: {_ADVICE.format(cls.__name__)}")

    def __getattr__(self, name: str) -> Any:
        # Called for names that the output does not have.
        if not name.startswith("_") and hasattr(torch.Tensor, name):
            raise AttributeError(f"{name}: {_ADVICE.format(type(self).__name__)}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


@dataclass
@auto_docstring(custom_intro="Output of [`NIMForRobustImageClassification`].")
class RobustImageClassifierOutput(_LogitsExpected, ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`, *optional*):
        Cross entropy of the combined prediction, if `labels` were given.
    logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`):
        The prediction: the classifier's logits for a single draw, and for several draws logits whose softmax is the
        mean probability or the share of votes.
    draw_logits (`torch.FloatTensor` of shape `(batch_size, num_samples, num_labels)`, with `output_draws`):
        The classifier's logits for every draw.
    votes (`torch.LongTensor` of shape `(batch_size, num_samples)`, with `output_draws`):
        The class that each draw chose, -1 if its logits are NaN.
    sigma (`torch.FloatTensor` of shape `(batch_size, num_samples)`, with `output_draws`):
        The noise scale of each draw in units of 0..255 pixels.
    noisy_pixel_values (`torch.FloatTensor`, with `output_draws`):
        The noisy images, of shape `(batch_size, num_samples, num_channels, height, width)`.
    denoised_pixel_values (`torch.FloatTensor`, with `output_draws`):
        The denoised images, clamped to pixels in [0, 1] and normalized, of shape
        `(batch_size, num_samples, num_channels, height, width)`. The classifier sees these; a classifier of another
        kind sees them with its own size and normalization.
    hidden_states (`tuple(torch.FloatTensor)`, *optional*):
        Hidden states of the classifier's encoder; the first dimension is `batch_size * num_samples`.
    attentions (`tuple(torch.FloatTensor)`, *optional*):
        Attention weights of the classifier's encoder; the first dimension is `batch_size * num_samples`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    draw_logits: torch.Tensor | None = None
    votes: torch.Tensor | None = None
    sigma: torch.Tensor | None = None
    noisy_pixel_values: torch.Tensor | None = None
    denoised_pixel_values: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def combine_draws(draw_logits: torch.Tensor, vote: str) -> torch.Tensor:
    """Combine the logits of several noise draws into one prediction.

    Args:
        draw_logits: The classifier's logits for every draw, shape `(batch, num_samples, num_labels)`.
        vote: `"mean"` for the mean of the probabilities, `"majority"` for the share of draws that chose each class.

    Returns:
        Logits of shape `(batch, num_labels)` whose softmax is that mean or share. Float32 if there are several draws.
        They are NaN where a draw has logits that are NaN: a broken model has no answer.
    """
    num_samples = draw_logits.shape[1]
    if num_samples == 1:
        return draw_logits[:, 0]
    log_probs = draw_logits.to(torch.float32).log_softmax(dim=-1)
    mean = log_probs.logsumexp(dim=1) - math.log(num_samples)
    if vote == "mean":
        return mean
    # `mean` is NaN, and with it the result, where a draw is: it votes for no class.
    shares = nn.functional.one_hot(draw_logits.argmax(dim=-1), draw_logits.shape[-1]).to(torch.float32).mean(dim=1)
    # At most a thousandth of a vote, which breaks ties and keeps logits finite.
    return (shares + 1e-3 / num_samples * mean.exp()).clamp(min=torch.finfo(torch.float32).tiny).log()


def answers(logits: torch.Tensor) -> torch.Tensor:
    """Return the predicted classes of logits `(..., num_labels)`; -1, which is no class, where one of them is NaN."""
    return logits.argmax(dim=-1).masked_fill(logits.isnan().any(dim=-1), -1)


def concatenate_states(parts: list[tuple[torch.Tensor, ...] | None]) -> tuple[torch.Tensor, ...] | None:
    """Concatenate the recorded states of several passes, layer by layer."""
    if parts[0] is None:
        return None
    if len(parts) == 1:
        return parts[0]
    return tuple(torch.cat(layer) for layer in zip(*parts))


__all__ = ["NIMForPreTrainingOutput", "RobustImageClassifierOutput"]
