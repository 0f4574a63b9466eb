# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""A transformers image classifier as attacks want it: pixels in [0, 1] in, logits out."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel


class PixelClassifier(nn.Module):
    """Maps images with pixels in [0, 1] to logits, through the normalization and a transformers classifier.

    Perturbations are measured in pixels, so attacks act before the normalization. The classifier is used as it is:
    its mode, its device and its parameters are left alone.

    Args:
        model: An image classification model, for example a [`NIMForRobustImageClassification`].
        image_mean: Per-channel mean of the normalization; the config's by default.
        image_std: Per-channel standard deviation of the normalization; the config's by default.
        forward_kwargs: Further arguments of the model's forward, such as `sigma`.

    Raises:
        ValueError: Mean or standard deviation are neither given nor in the model's config, the model is in train mode
            (where another sigma applies), or its forward does not know an argument.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        **forward_kwargs: Any,
    ):
        super().__init__()
        if model.training:
            raise ValueError("the model is in train mode, where dropout and another sigma apply; call model.eval()")
        # transformers models swallow arguments that they do not know: a misspelled sigma would go unnoticed.
        unknown = forward_kwargs.keys() - inspect.signature(model.forward).parameters.keys()
        if unknown or "generator" in forward_kwargs:
            wrong = sorted(unknown) or "a generator, which would repeat its noise; noise is drawn anew in every call"
            raise ValueError(f"{type(model).__name__}.forward cannot be given {wrong} here")
        mean = image_mean if image_mean is not None else getattr(model.config, "image_mean", None)
        std = image_std if image_std is not None else getattr(model.config, "image_std", None)
        if mean is None or std is None:
            raise ValueError(
                f"the config of {type(model).__name__} does not hold the normalization of its images; pass image_mean"
                " and image_std of its image processor"
            )
        # A list keeps the model out of this module's own, so that .train() and .to() here do not reach it.
        self._model = [model]
        self.image_mean, self.image_std, self.forward_kwargs = list(mean), list(std), forward_kwargs

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels in [0, 1] to what the model takes."""
        mean = torch.tensor(self.image_mean, device=pixels.device)[:, None, None]
        std = torch.tensor(self.image_std, device=pixels.device)[:, None, None]
        return (pixels - mean) / std

    def to_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The inverse of [`~PixelClassifier.normalize`]."""
        mean = torch.tensor(self.image_mean, device=pixel_values.device)[:, None, None]
        std = torch.tensor(self.image_std, device=pixel_values.device)[:, None, None]
        return pixel_values * std + mean

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._model[0](self.normalize(pixels), **self.forward_kwargs).logits
