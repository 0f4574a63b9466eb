# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Load ViT-MAE checkpoints of transformers (`facebook/vit-mae-base`) as NIM models, to start pretraining from.

Both models have the same encoder and decoder and differ in the task alone, so every tensor except the mask token has
its place. The tensors' names depend on the release of transformers that wrote them:

- the first releases, and the checkpoints on the Hub: `vit.encoder.layer.0.attention.attention.query.weight`;
- in memory since some release of 5.x: `vit.layers.0.attention.q_proj.weight`;
- what those save: the first names, except `decoder.decoder_encoder.layer.0` for `decoder.decoder_layers.0`.
"""

import json
import pickle
import re
import struct
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig
from transformers.utils import (
    IMAGE_PROCESSOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from ..model.configuration_nim import NIMConfig
from ..model.modeling_nim import NIMForPreTraining


_LAYER = re.compile(
    r"(?:(?P<encoder>(?:vit\.)?(?:layers|encoder\.layer))|decoder\.(?:decoder_layers|decoder_encoder\.layer))"
    r"\.(?P<index>\d+)\.(?P<part>.+)"
)
_IN_LAYER = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_SAME_IN_LAYER = {*_IN_LAYER.values(), "layernorm_before", "layernorm_after"}
_ELSEWHERE = {
    "embeddings.cls_token": "nim.embeddings.cls_token",
    "embeddings.position_embeddings": "nim.embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection": "nim.embeddings.patch_embeddings.projection",
    "layernorm": "nim.layernorm",
    "decoder.decoder_pos_embed": "decoder.position_embeddings",
    "decoder.decoder_embed": "decoder.embed",
    "decoder.decoder_norm": "decoder.layernorm",
    "decoder.decoder_pred": "decoder.projection",
}
_SAME_IN_CONFIG = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps", "image_size",
    "patch_size", "num_channels", "qkv_bias", "decoder_hidden_size", "decoder_num_hidden_layers",
    "decoder_num_attention_heads", "decoder_intermediate_size", "norm_pix_loss",
)  # fmt: skip
# The default of ViTMAEConfig, also in the configs of the published models. Their weights come from MAE's code, which
# uses 1e-6, as NIM does.
_VIT_MAE_DEFAULT_EPS = 1e-12
_OVERRIDABLE = {field.name for field in fields(NIMConfig)} | {"num_labels"}
# torch's unpickler executes any bytes as its own instructions, and fails in all these ways.
_UNREADABLE = (
    SafetensorError, pickle.UnpicklingError, struct.error, EOFError, RuntimeError, LookupError, ValueError, TypeError,
    AttributeError, AssertionError,
)  # fmt: skip


def convert_vit_mae_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors of transformers' `ViTMAEForPreTraining` to those of [`NIMForPreTraining`].

    Args:
        state_dict: Its weights, under the names of any release of transformers, in memory or from a file.

    Returns:
        The same tensors without the mask token, which NIM does not use.

    Raises:
        ValueError: A name is not of ViT-MAE, or the decoder is missing.
    """
    converted = {}
    for key, tensor in state_dict.items():
        if key == "decoder.mask_token":
            continue
        name, leaf = split_leaf(key)
        layer = _LAYER.fullmatch(name)
        ours = _ELSEWHERE.get(name.removeprefix("vit."))
        if layer is not None and leaf:
            part = _IN_LAYER.get(layer["part"], layer["part"])
            stack = "nim" if layer["encoder"] else "decoder"
            ours = f"{stack}.layers.{layer['index']}.{part}" if part in _SAME_IN_LAYER else None
        if ours is None:
            raise ValueError(f"unexpected tensor {key!r}: not a checkpoint of transformers' ViTMAEForPreTraining")
        converted[f"{ours}{leaf}"] = tensor
    if not any(name.startswith("decoder.") for name in converted):
        raise ValueError(
            "the checkpoint has no decoder; NIM needs a pretraining checkpoint with one (of ViTMAEForPreTraining, not"
            " of ViTMAEModel)"
        )
    return converted


def split_leaf(key: str) -> tuple[str, str]:
    """Split a tensor's name into that of its module and `.weight` or `.bias`, which other tensors do not have."""
    name, dot, leaf = key.rpartition(".")
    return (name, f"{dot}{leaf}") if leaf in ("weight", "bias") and dot else (key, "")


def load_vit_mae(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    subfolder: str = "",
    local_files_only: bool = False,
    **config_overrides: Any,
) -> NIMForPreTraining:
    """Load a masked autoencoder that transformers' `ViTMAEForPreTraining` has saved as a NIM model.

    On a clean image it predicts what the masked autoencoder predicts with nothing masked. Position embeddings are
    those of the checkpoint, even if they are not the usual sine-cosine table.

    The epsilon of layer norms becomes 1e-6 if the checkpoint's config has 1e-12, transformers' default: the published
    weights come from MAE's code, which uses 1e-6. Pass `layer_norm_eps=1e-12` for a model that transformers itself has
    trained with it. Other values are kept.

    Args:
        name_or_path: A repository of the Hub or a folder. Weights are safetensors files, or `pytorch_model.bin`, of
            which only tensors are read. Both may be in shards.
        revision: Branch, tag or commit of the repository.
        token: Access token of the Hub; True for the one that is logged in.
        cache_dir: Folder for downloads, instead of the usual one.
        subfolder: Folder within the repository.
        local_files_only: Whether to read files that were downloaded before, without asking the Hub.
        config_overrides: Fields of [`NIMConfig`] that replace those derived from the checkpoint's config. By default,
            `image_mean` and `image_std` are those of the checkpoint's image processor, if it has one.

    Returns:
        The model in float32 and eval mode.

    Raises:
        ValueError: The checkpoint is not a whole ViT-MAE with decoder, or a field of the config is unknown or wrong.
        OSError: There is no such repository or folder, it has no weights, or the Hub cannot be reached.

    Example:

    ```python
    >>> from transformers_nim.conversion import load_vit_mae

    >>> model = load_vit_mae("facebook/vit-mae-base", patch_statistics="input")  # doctest: +SKIP
    >>> model.save_pretrained("nim-from-mae")  # doctest: +SKIP
    ```
    """
    unknown = sorted(set(config_overrides) - _OVERRIDABLE)
    if unknown:
        raise ValueError(f"NIMConfig has no field {unknown[0]!r}; its fields are {sorted(_OVERRIDABLE)}")
    source: dict[str, Any] = {
        "revision": revision,
        "token": token,
        "cache_dir": cache_dir,
        "subfolder": subfolder,
        "local_files_only": local_files_only,
    }
    config = _nim_config(str(name_or_path), source, config_overrides)
    weights = convert_vit_mae_state_dict(_read_weights(str(name_or_path), source))
    model = NIMForPreTraining(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the weights of {name_or_path} do not fit its config: {error}") from error
    model.config.name_or_path = str(name_or_path)
    return model.eval()


def _nim_config(name_or_path: str, source: dict[str, Any], overrides: dict[str, Any]) -> NIMConfig:
    """Make the config of the NIM model from those of the checkpoint and of its image processor."""
    vit_mae = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False, **source)
    if vit_mae.model_type != "vit_mae":
        raise ValueError(f"{name_or_path} is a model of type {vit_mae.model_type!r}; the type must be 'vit_mae'")
    values = {name: getattr(vit_mae, name) for name in _SAME_IN_CONFIG}
    if values["layer_norm_eps"] == _VIT_MAE_DEFAULT_EPS:
        del values["layer_norm_eps"]
    processor = _find(name_or_path, IMAGE_PROCESSOR_NAME, source)
    if processor is not None:
        statistics = json.loads(processor.read_text(encoding="utf-8"))
        values |= {name: statistics[name] for name in ("image_mean", "image_std") if statistics.get(name)}
    return NIMConfig(**{**values, **overrides})


def _find(name_or_path: str, file_name: str, source: dict[str, Any]) -> Path | None:
    """Return the path of a file of the checkpoint, downloaded if need be, or None if there is no such file."""
    path = cached_file(name_or_path, file_name, _raise_exceptions_for_missing_entries=False, **source)
    return None if path is None else Path(path)


def _read_weights(name_or_path: str, source: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Read all tensors of a checkpoint."""
    for single, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        path = _find(name_or_path, single, source)
        if path is not None:
            return _read_tensors(path)
        index_path = _find(name_or_path, index, source)
        if index_path is not None:
            shards = sorted(set(json.loads(index_path.read_text(encoding="utf-8"))["weight_map"].values()))
            paths = [Path(cached_file(name_or_path, shard, **source) or shard) for shard in shards]
            return {key: tensor for path in paths for key, tensor in _read_tensors(path).items()}
    raise OSError(f"{name_or_path} has no weights: neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME}, whole or in shards")


def read_checkpoint_file(path: Path) -> Any:
    """Read a safetensors file or a file of `torch.save` to the CPU, without executing anything in it.

    Args:
        path: The file. If its name does not end in `.safetensors`, `torch.load` reads it with `weights_only`.

    Raises:
        ValueError: The file is neither, or holds something else than tensors and plain containers.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as a checkpoint of tensors") from error


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of one file."""
    tensors = read_checkpoint_file(path)
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} holds something else than tensors")
    return dict(tensors)


__all__ = ["convert_vit_mae_state_dict", "load_vit_mae"]
