# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Tiny random classifiers of other kinds, with their image processors."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)


NAMES = ["cat", "dog", "owl", "bee"]
LABELS: dict[str, Any] = {
    "num_labels": len(NAMES),
    "id2label": dict(enumerate(NAMES)),
    "label2id": {name: index for index, name in enumerate(NAMES)},
}
MEAN, STD = [0.5, 0.4, 0.3], [0.5, 0.25, 0.2]

# A processor that makes images of 32 pixels, and one that makes them of 48 and crops.
SAME_SIZE = ViTImageProcessor(image_mean=MEAN, image_std=STD, size={"height": 32, "width": 32})
LARGER = ConvNextImageProcessor(image_mean=MEAN, image_std=STD, size={"shortest_edge": 48}, crop_pct=0.875)

_WIDTHS: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_TIMM: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2}
_MAKERS: dict[str, tuple[Callable[..., PreTrainedModel], Any]] = {
    "convnext": (
        lambda **kwargs: ConvNextForImageClassification(
            ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, **kwargs)
        ),
        LARGER,
    ),
    "swin": (
        lambda **kwargs: SwinForImageClassification(
            SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4, **kwargs)
        ),
        SAME_SIZE,
    ),
    "resnet": (
        lambda **kwargs: ResNetForImageClassification(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **kwargs)
        ),
        LARGER,
    ),
    "vit": (
        lambda **kwargs: ViTForImageClassification(
            ViTConfig(image_size=32, patch_size=8, intermediate_size=32, **_WIDTHS, **kwargs)
        ),
        SAME_SIZE,
    ),
    "timm_wrapper": (
        lambda **kwargs: TimmWrapperForImageClassification(
            TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=_TIMM, **kwargs)
        ),
        SAME_SIZE,
    ),
}
KINDS = list(_MAKERS)


def other_classifier(kind: str, **config: Any) -> tuple[PreTrainedModel, Any]:
    """A classifier in eval mode whose predictions differ from picture to picture, and its image processor."""
    make, processor = _MAKERS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make(**{**LABELS, **config}).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.25)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    return model, processor
