# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Writes models of this package as checkpoints of the authors' code (github.com/youzunzhi/NIM-AdvDef).

    python -m transformers_nim.conversion --to_authors nim-vit-base-de3 --output_dir authors

It writes `pretraining.pth` with `{"model": weights}` and, of a classifier, `finetuned.pth` with
`{"classifier": weights}`: plain tensors, which `torch.load(..., weights_only=True)` reads.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers.utils import logging

from ..model.configuration_nim import NIMConfig
from ..model.loading_nim import refuse_other_classifier, saved_architectures
from ..model.modeling_nim import NIMForImageClassification, NIMForPreTraining, NIMForRobustImageClassification


logger = logging.get_logger(__name__)

PRETRAINING_NAME, FINETUNED_NAME = "pretraining.pth", "finetuned.pth"

# Their names of what a layer consists of, but for the projections of attention, which they fuse, and ours.
IN_LAYER = {
    "attn.proj": "attention.o_proj",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
# The same for everything else.
ELSEWHERE = {
    "cls_token": "nim.embeddings.cls_token",
    "pos_embed": "nim.embeddings.position_embeddings",
    "patch_embed.proj": "nim.embeddings.patch_embeddings.projection",
    "norm": "nim.layernorm",
    "decoder_embed": "decoder.embed",
    "decoder_pos_embed": "decoder.position_embeddings",
    "decoder_norm": "decoder.layernorm",
    "decoder_pred": "decoder.projection",
    "fc_norm": "fc_norm",
    "head": "classifier",
}
LAYERS = {"blocks": "nim.layers", "decoder_blocks": "decoder.layers"}

_THEIRS_IN_LAYER = {ours: theirs for theirs, ours in IN_LAYER.items()}
_THEIRS_ELSEWHERE = {ours: theirs for theirs, ours in ELSEWHERE.items()}


def to_authors_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the tensors of a model of this package to those of a model of the authors' code.

    Args:
        state_dict: Weights of [`NIMForPreTraining`] or [`NIMForImageClassification`], biases of the projections of
            attention among them.

    Returns:
        The same values under their names. A pretraining model gets a mask token of zeros, which their code expects and
        never uses.

    Raises:
        ValueError: A tensor's name does not belong to those models, or a projection of attention is missing.
    """
    converted: dict[str, torch.Tensor] = {}
    for key, tensor in state_dict.items():
        name, dot, leaf = key.rpartition(".")
        if leaf not in ("weight", "bias"):
            name, dot, leaf = key, "", ""
        if name in _THEIRS_ELSEWHERE:
            converted[f"{_THEIRS_ELSEWHERE[name]}{dot}{leaf}"] = tensor
            continue
        owner, _, rest = name.partition(".layers.")
        index, _, part = rest.partition(".")
        blocks = {"nim": "blocks", "decoder": "decoder_blocks"}.get(owner)
        if blocks is not None and part in _THEIRS_IN_LAYER:
            converted[f"{blocks}.{index}.{_THEIRS_IN_LAYER[part]}.{leaf}"] = tensor
        elif blocks is not None and part == "attention.q_proj":
            projections = [key.replace("q_proj", f"{letter}_proj") for letter in "qkv"]
            missing = [projection for projection in projections if projection not in state_dict]
            if missing:
                raise ValueError(f"the weights have no tensor {missing[0]!r}")
            fused = torch.cat([state_dict[projection] for projection in projections])
            converted[f"{blocks}.{index}.attn.qkv.{leaf}"] = fused
        elif blocks is None or part not in ("attention.k_proj", "attention.v_proj"):
            raise ValueError(
                f"unexpected tensor {key!r}: not weights of NIMForPreTraining or NIMForImageClassification"
            )
    if "decoder_embed.weight" in converted:
        embed = converted["decoder_embed.weight"]
        converted["mask_token"] = embed.new_zeros(1, 1, embed.shape[0])
    return converted


def save_authors_checkpoint(
    model: NIMForPreTraining | NIMForImageClassification | str | os.PathLike, output_dir: str | Path
) -> list[Path]:
    """Writes a model as checkpoints that the authors' code loads.

    Their code has no config: it must be told `norm_pix_loss` and sizes that are not the paper's. It normalizes images
    by ImageNet's statistics, and turns normalized patches back by `patch_statistics="input"`. Where the model was made
    for something else, the tensors are written all the same and a warning says what differs.

    Args:
        model: A model, or the name or path of its checkpoint.
        output_dir: The folder to write, which is made if need be.

    Returns:
        The files: `pretraining.pth` of a pretrained model, `finetuned.pth` of a classifier without the defense, and
        both of a [`NIMForRobustImageClassification`].

    Raises:
        ValueError: It is none of these models, or has settings that the authors' code does not know.
        OSError: There is no such checkpoint.
    """
    if isinstance(model, (str, os.PathLike)):
        model = load_nim(os.fspath(model))
    if not isinstance(model, (NIMForPreTraining, NIMForImageClassification)):
        raise ValueError(f"only NIM models with a decoder or a head can be converted, got a {type(model).__name__}")
    refuse_other_classifier(model.config)
    _check_config(model.config)
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    denoiser = {k.removeprefix("denoiser."): v for k, v in weights.items() if k.startswith("denoiser.")}
    rest = {k: v for k, v in weights.items() if not k.startswith("denoiser.")}
    files: dict[str, tuple[str, dict[str, torch.Tensor]]] = {}
    if isinstance(model, NIMForPreTraining):
        files[PRETRAINING_NAME] = "model", rest
    else:
        if denoiser:
            files[PRETRAINING_NAME] = "model", denoiser
        files[FINETUNED_NAME] = "classifier", rest
    converted = {name: {entry: to_authors_state_dict(part)} for name, (entry, part) in files.items()}
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    for name, content in converted.items():
        torch.save(content, Path(output_dir) / name)
    return [Path(output_dir) / name for name in converted]


def load_nim(name_or_path: str) -> NIMForPreTraining | NIMForImageClassification:
    """The model of a checkpoint, whichever of this package's with a decoder or a head it is.

    Raises:
        ValueError: It is none of these.
        OSError: There is no such checkpoint.
    """
    for cls in (NIMForPreTraining, NIMForRobustImageClassification, NIMForImageClassification):
        if cls.__name__ in saved_architectures(name_or_path, {}):
            return cls.from_pretrained(name_or_path)
    raise ValueError(
        f"{name_or_path} holds no NIM model with a decoder or a head; its config says"
        f" {saved_architectures(name_or_path, {})}"
    )


def _check_config(config: NIMConfig) -> None:
    height, width = config.image_shape
    patch_height, patch_width = config.patch_shape
    default = NIMConfig()
    wrong = []
    if height != width or patch_height != patch_width:
        wrong.append(f"images of {height}x{width} pixels in patches of {patch_height}x{patch_width}")
    if not config.qkv_bias:
        wrong.append("no biases of queries, keys and values")
    for name in ("hidden_act", "layer_norm_eps", "num_channels"):
        ours, theirs = getattr(config, name), getattr(default, name)
        if ours != theirs:
            wrong.append(f"{name}={ours} (it has {theirs})")
    if wrong:
        raise ValueError(f"the authors' code does not know {'; '.join(wrong)}")
    if (config.image_mean, config.image_std) != (default.image_mean, default.image_std):
        logger.warning(
            f"the model takes images normalized by {config.image_mean} and {config.image_std}; the authors' code"
            f" normalizes by {default.image_mean} and {default.image_std}, which has to be changed there"
        )
    if config.norm_pix_loss and config.patch_statistics != "input":
        logger.warning(
            f'the model was made for patch_statistics="{config.patch_statistics}"; the authors\' code takes those of'
            " the image before noise, with which it denoises otherwise"
        )


__all__ = ["save_authors_checkpoint", "to_authors_state_dict"]
