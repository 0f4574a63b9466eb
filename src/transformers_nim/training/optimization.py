# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Set optimizer, learning rates and their schedule, as in MAE (arXiv 2111.06377) and NIM."""

import math
import re
from typing import Any

import torch
from transformers import get_scheduler

from ..model.modeling_nim import NIMPreTrainedModel
from .mae import MaskedAutoencoder


SCHEDULES = ("cosine", "linear", "constant")

# Embeddings of tokens; like biases and norms they do not decay.
_TOKENS = re.compile(r"(^|\.)(cls_token|mask_token|position_embeddings)$")


def scaled_learning_rate(base_learning_rate: float, total_batch_size: int) -> float:
    """Return the learning rate for a batch by the linear scaling rule, `base * images per update / 256`."""
    return base_learning_rate * total_batch_size / 256


def layer_of_parameter(name: str, num_hidden_layers: int) -> int:
    """Return the depth of a classifier's parameter: 0 for embeddings, 1 to n for layers, n + 1 for the head."""
    if name.startswith("nim.embeddings."):
        return 0
    match = re.match(r"nim\.layers\.(\d+)\.", name)
    return int(match.group(1)) + 1 if match else num_hidden_layers + 1


def layer_of_denoiser(name: str, num_hidden_layers: int, num_decoder_layers: int) -> int:
    """Return the depth of a parameter of a classifier's denoiser: embeddings 0, encoder, decoder, and the end."""
    if name.startswith("denoiser.nim.embeddings."):
        return 0
    match = re.match(r"denoiser\.(nim|decoder)\.layers\.(\d+)\.", name)
    if match:
        return int(match.group(2)) + 1 + (num_hidden_layers if match.group(1) == "decoder" else 0)
    between = name.startswith(("denoiser.nim.layernorm.", "denoiser.decoder.embed."))
    return num_hidden_layers + (0 if between else num_decoder_layers + 1)


def parameter_groups(
    model: NIMPreTrainedModel | MaskedAutoencoder,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    denoiser_factor: float = 1.0,
    denoiser_layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups of equal learning rate and weight decay.

    Args:
        model: NIM model. With `layer_decay` below 1 a classifier, whose layers are found by parameter names.
        learning_rate: Learning rate of the head.
        weight_decay: Decay of matrices; biases, norms and token embeddings get none.
        layer_decay: Factor of the learning rate from each layer to the one below, in (0, 1] (BEiT, arXiv 2106.08254).
            The embeddings get `learning_rate * layer_decay ** (depth + 1)`.
        denoiser_factor: Learning rate of the end of a classifier's denoiser, relative to `learning_rate`. Matters if
            the denoiser is trained.
        denoiser_layer_decay: `layer_decay` of the denoiser, through its decoder and then its encoder.

    Returns:
        Groups with `params`, `lr`, `weight_decay`, `name` and `parameter_names`.

    Raises:
        ValueError: A number is out of range, or nothing is trainable.
    """
    for name, decay in (("layer_decay", layer_decay), ("denoiser_layer_decay", denoiser_layer_decay)):
        if not 0 < decay <= 1:
            raise ValueError(f"{name} must be greater than 0 and at most 1, got {decay}")
    if not 0 < denoiser_factor < math.inf:
        raise ValueError(f"denoiser_learning_rate_factor must be greater than 0, got {denoiser_factor}")
    if not (0 < learning_rate < math.inf and 0 <= weight_decay < math.inf):
        raise ValueError(
            f"learning_rate must be positive and weight_decay at least 0, got {learning_rate} and {weight_decay}"
        )
    if layer_decay < 1 and getattr(model.config, "classifier_config", None) is not None:
        raise ValueError(
            f"layer_decay {layer_decay} needs the layers of a NIM encoder, and this model's classifier is of another"
            " kind; pass 1"
        )
    depth = model.config.num_hidden_layers if layer_decay < 1 else 0
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and not _TOKENS.search(name)
        if name.startswith("denoiser."):
            config = model.config
            counts = config.num_hidden_layers, config.decoder_num_hidden_layers
            layer, own_decay = layer_of_denoiser(name, *counts), denoiser_layer_decay
            rate = denoiser_factor * learning_rate * own_decay ** (sum(counts) + 1 - layer)
            key = "denoiser" if own_decay == 1 else f"denoiser_layer_{layer}"
        else:
            layer = layer_of_parameter(name, depth)
            rate = learning_rate * layer_decay ** (depth + 1 - layer) if layer_decay < 1 else learning_rate
            key = f"layer_{layer}" if layer_decay < 1 else "all"
        key += "" if decays else "_no_decay"
        group = groups.setdefault(
            key,
            {"params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0, "name": key,
             "parameter_names": []},
        )  # fmt: skip
        group["params"].append(parameter)
        group["parameter_names"].append(name)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no trainable parameters")
    return list(groups.values())


def make_optimizer(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.AdamW:
    """Return AdamW over groups from [`parameter_groups`], fused where the device has it."""
    device = groups[0]["params"][0].device.type
    # Checkpoints hold the optimizer's state as numbers and tensors, so parameter names stay with the caller.
    groups = [{key: group[key] for key in ("params", "lr", "weight_decay", "name")} for group in groups]
    return torch.optim.AdamW(groups, lr=groups[0]["lr"], betas=betas, fused=device in ("cpu", "cuda"))


def make_schedule(
    optimizer: torch.optim.Optimizer,
    kind: str,
    num_warmup_steps: int,
    num_training_steps: int,
    min_learning_rate_ratio: float = 0.0,
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a schedule of the learning rate per step: linear warm-up, then decay.

    Args:
        optimizer: Optimizer; each of its groups is scheduled relative to its own learning rate.
        kind: `"cosine"`, `"linear"` or `"constant"`.
        num_warmup_steps: Steps from 0 to the full rate.
        num_training_steps: Steps in all.
        min_learning_rate_ratio: End of the cosine, as a share of the full rate in [0, 1].

    Raises:
        ValueError: The kind is unknown, or a number is out of range.
    """
    if kind not in SCHEDULES:
        raise ValueError(f"lr_scheduler_type must be one of {SCHEDULES}, got {kind!r}")
    if not 0 <= num_warmup_steps <= num_training_steps:
        raise ValueError(f"{num_warmup_steps} warm-up steps do not fit into {num_training_steps} steps")
    if not 0 <= min_learning_rate_ratio <= 1:
        raise ValueError(
            f"min_learning_rate must be from 0 to the learning rate, got {min_learning_rate_ratio} times the rate"
        )
    name = {"cosine": "cosine_with_min_lr", "constant": "constant_with_warmup"}.get(kind, kind)
    options = {"min_lr_rate": min_learning_rate_ratio} if kind == "cosine" else None
    return get_scheduler(
        name,
        optimizer,
        num_warmup_steps=num_warmup_steps,
        num_training_steps=num_training_steps,
        scheduler_specific_kwargs=options,
    )
