# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Convert checkpoints of the authors' code (github.com/youzunzhi/NIM-AdvDef) to this package's layout and back.

The authors' layout is that of MAE and timm: fused qkv projections, a mask token that NIM never uses, and position
embeddings that are stored although they are fixed. Sizes are read from the tensors. What tensors cannot tell is an
argument.
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..model.configuration_nim import NIM_SIZES, NIMConfig
from ..model.image_processing_nim import NIMImageProcessor
from ..model.loading_nim import refuse_other_classifier, saved_class, saved_config
from ..model.modeling_nim import NIMForImageClassification, NIMForPreTraining, NIMForRobustImageClassification
from .vit_mae import read_checkpoint_file, split_leaf


logger = logging.get_logger(__name__)

_PRETRAINING_NAME, _FINETUNED_NAME = "pretraining.pth", "finetuned.pth"

# From the authors' names to ours: stacks of layers, the parts of a layer except its q, k and v, and everything else.
_STACKS = {"blocks": "nim", "decoder_blocks": "decoder"}
_IN_LAYER = {
    "attn.proj": "attention.o_proj",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_ELSEWHERE = {
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
_THEIR_STACKS, _THEIRS_IN_LAYER, _THEIRS_ELSEWHERE = (
    {ours: theirs for theirs, ours in names.items()} for names in (_STACKS, _IN_LAYER, _ELSEWHERE)
)


def convert_authors_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors of a model of the authors' code to this package's names.

    Args:
        state_dict: Weights of their pretraining model or of their classifier. The prefix `module.`, which distributed
            training adds, is removed.

    Returns:
        Weights of [`NIMForPreTraining`] or [`NIMForImageClassification`].

    Raises:
        ValueError: A name is not of that layout, or a fused projection cannot be split into three.
    """
    converted = {}
    for key, tensor in state_dict.items():
        key = str(key).removeprefix("module.")
        if key == "mask_token":
            continue
        name, leaf = split_leaf(key)
        if name in _ELSEWHERE:
            converted[f"{_ELSEWHERE[name]}{leaf}"] = tensor
            continue
        blocks, _, rest = name.partition(".")
        index, _, part = rest.partition(".")
        layer = f"{_STACKS.get(blocks)}.layers.{index}"
        if blocks not in _STACKS or not index.isdigit() or part not in (*_IN_LAYER, "attn.qkv"):
            raise ValueError(f"unexpected tensor {key!r}: not a checkpoint of the authors' NIM code")
        if part != "attn.qkv":
            converted[f"{layer}.{_IN_LAYER[part]}{leaf}"] = tensor
            continue
        if tensor.ndim == 0 or tensor.shape[0] % 3:
            raise ValueError(f"tensor {key!r} of shape {tuple(tensor.shape)} is not made of three equal projections")
        for projection, third in zip("qkv", tensor.chunk(3)):
            converted[f"{layer}.attention.{projection}_proj{leaf}"] = third.clone()
    return converted


def to_authors_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors of a model of this package to the names of the authors' code.

    Args:
        state_dict: Weights of [`NIMForPreTraining`] or [`NIMForImageClassification`], with biases of q, k and v.

    Returns:
        The same values under their names. A pretraining model gets a mask token of zeros, which their code expects and
        never uses.

    Raises:
        ValueError: A name is not of those models, or q, k or v of a layer is missing.
    """
    converted: dict[str, torch.Tensor] = {}
    for key, tensor in state_dict.items():
        name, leaf = split_leaf(key)
        if name in _THEIRS_ELSEWHERE:
            converted[f"{_THEIRS_ELSEWHERE[name]}{leaf}"] = tensor
            continue
        stack, _, rest = name.partition(".layers.")
        index, _, part = rest.partition(".")
        blocks = _THEIR_STACKS.get(stack)
        if blocks is not None and part in _THEIRS_IN_LAYER:
            converted[f"{blocks}.{index}.{_THEIRS_IN_LAYER[part]}{leaf}"] = tensor
        elif blocks is not None and part == "attention.q_proj":
            projections = [key.replace("q_proj", f"{letter}_proj") for letter in "qkv"]
            missing = [projection for projection in projections if projection not in state_dict]
            if missing:
                raise ValueError(f"the weights have no tensor {missing[0]!r}")
            fused = torch.cat([state_dict[projection] for projection in projections])
            converted[f"{blocks}.{index}.attn.qkv{leaf}"] = fused
        elif blocks is None or part not in ("attention.k_proj", "attention.v_proj"):
            raise ValueError(
                f"unexpected tensor {key!r}: not weights of NIMForPreTraining or NIMForImageClassification"
            )
    if "decoder_embed.weight" in converted:
        embed = converted["decoder_embed.weight"]
        converted["mask_token"] = embed.new_zeros(1, 1, embed.shape[0])
    return converted


def config_from_weights(
    pretraining: Mapping[str, torch.Tensor],
    num_attention_heads: int | None = None,
    decoder_num_attention_heads: int | None = None,
    **overrides: Any,
) -> NIMConfig:
    """Read the sizes of a model from its converted pretraining weights.

    Args:
        pretraining: Weights of [`NIMForPreTraining`].
        num_attention_heads: Heads of each encoder layer. Known for the paper's sizes.
        decoder_num_attention_heads: Heads of each decoder layer. Known for the paper's decoder.
        overrides: Further fields of the config.

    Raises:
        ValueError: A tensor is missing, the images are not square, or a number of heads has to be given.
    """
    try:
        projection = pretraining["nim.embeddings.patch_embeddings.projection.weight"]
        positions = pretraining["nim.embeddings.position_embeddings"]
        width, channels, patch_height, patch_width = projection.shape
        decoder_width = pretraining["decoder.embed.weight"].shape[0]
        intermediate = pretraining["nim.layers.0.mlp.fc1.weight"].shape[0]
        decoder_intermediate = pretraining["decoder.layers.0.mlp.fc1.weight"].shape[0]
        num_patches = positions.shape[1] - 1
    except KeyError as error:
        raise ValueError(f"not a pretraining checkpoint: it has no tensor {error}") from error
    except (ValueError, IndexError) as error:
        raise ValueError(f"not a pretraining checkpoint: a tensor has the wrong shape ({error})") from error
    depth, decoder_depth = (_depth(pretraining, f"{stack}.layers.") for stack in ("nim", "decoder"))
    side = round(num_patches**0.5)
    if side**2 != num_patches or patch_height != patch_width:
        raise ValueError(
            f"{num_patches} patches of {patch_height}x{patch_width} pixels are not a square image; the"
            " authors' code knows no others"
        )

    paper_sizes = (NIM_SIZES[name] for name in ("tiny", "small", "base", "large", "huge"))
    for size_width, size_depth, heads, _, _, size_decoder_width, _, decoder_heads in paper_sizes:
        if num_attention_heads is None and (size_width, size_depth) == (width, depth):
            num_attention_heads = heads
        if decoder_num_attention_heads is None and size_decoder_width == decoder_width:
            decoder_num_attention_heads = decoder_heads
    if num_attention_heads is None:
        raise ValueError(
            f"an encoder of width {width} and depth {depth} is not one of the paper's; pass its --num_attention_heads"
        )
    if decoder_num_attention_heads is None:
        raise ValueError(
            f"a decoder of width {decoder_width} is not the paper's; pass its --decoder_num_attention_heads"
        )
    return NIMConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=num_attention_heads,
        intermediate_size=intermediate,
        image_size=side * patch_height,
        patch_size=patch_height,
        num_channels=channels,
        decoder_hidden_size=decoder_width,
        decoder_num_hidden_layers=decoder_depth,
        decoder_num_attention_heads=decoder_num_attention_heads,
        decoder_intermediate_size=decoder_intermediate,
        **overrides,
    )


def _depth(weights: Mapping[str, torch.Tensor], prefix: str) -> int:
    return 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in weights if key.startswith(prefix))


def load_authors_checkpoint(path: str | Path, entry: str) -> dict[str, torch.Tensor]:
    """Read the weights of one of the authors' `.pt` files without executing anything in it.

    Args:
        path: The file.
        entry: The name under which it holds the weights: `"model"` for pretraining, `"classifier"` for fine-tuning.

    Raises:
        ValueError: The file is not a checkpoint, or has no such entry.
        FileNotFoundError: There is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    # The authors store their training arguments (an argparse.Namespace) beside the weights.
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = read_checkpoint_file(path)
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get(entry), Mapping):
        found = type(checkpoint).__name__
        if isinstance(checkpoint, Mapping):
            names = sorted(map(str, checkpoint))
            found = f"{names[:5]}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise ValueError(f"{path} has no entry {entry!r} with weights; it has {found}")
    weights = checkpoint[entry]
    if not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise ValueError(f"the entry {entry!r} of {path} holds something else than tensors")
    return dict(weights)


def convert_authors_checkpoint(
    pretraining: str | Path,
    output_dir: str | Path,
    finetuned: str | Path | None = None,
    num_attention_heads: int | None = None,
    decoder_num_attention_heads: int | None = None,
    norm_pix_loss: bool = True,
) -> NIMForPreTraining | NIMForRobustImageClassification:
    """Convert the authors' checkpoints to a folder for `from_pretrained`, with config and image processor.

    Args:
        pretraining: Their pretraining checkpoint, `{"model": weights}`.
        output_dir: The folder to write.
        finetuned: Their fine-tuned classifier, `{"classifier": weights}`. With it the folder holds a
            [`NIMForRobustImageClassification`], without it a [`NIMForPreTraining`].
        num_attention_heads: Heads of each encoder layer, for sizes that are not the paper's.
        decoder_num_attention_heads: Heads of each decoder layer, for decoders that are not the paper's.
        norm_pix_loss: Whether the decoder predicts normalized patches, as in the authors' released setting.

    Returns:
        The converted model in eval mode.

    Raises:
        ValueError: A file is not what it should be, or a number of heads has to be given.
        FileNotFoundError: There is no such file.
    """
    weights = convert_authors_state_dict(load_authors_checkpoint(pretraining, "model"))
    classifier = None
    overrides: dict[str, Any] = {"norm_pix_loss": norm_pix_loss, "patch_statistics": "input"}
    if finetuned is not None:
        classifier = convert_authors_state_dict(load_authors_checkpoint(finetuned, "classifier"))
        if "classifier.weight" not in classifier:
            raise ValueError(f"{finetuned} has no classification head (a tensor head.weight)")
        overrides["num_labels"] = classifier["classifier.weight"].shape[0]
    config = config_from_weights(weights, num_attention_heads, decoder_num_attention_heads, **overrides)

    model: NIMForPreTraining | NIMForRobustImageClassification
    if classifier is None:
        model = NIMForPreTraining(config)
    else:
        model = NIMForRobustImageClassification(config)
        weights = {f"denoiser.{key}": tensor for key, tensor in weights.items()} | classifier
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the weights do not make a whole model: {error}") from error
    model.eval()
    save_model(model, output_dir)
    return model


def save_authors_checkpoint(
    model: NIMForPreTraining | NIMForImageClassification | str | os.PathLike, output_dir: str | Path
) -> list[Path]:
    """Write a model as checkpoints that the authors' code loads: plain tensors, read with `weights_only=True`.

    Their code has no config. It must be told `norm_pix_loss` and sizes that are not the paper's. It normalizes images
    by ImageNet's statistics, and denormalizes patches as `patch_statistics="input"` does. If the model was made for
    other settings, the files are written all the same, and a warning says what differs.

    Args:
        model: A model, or the name or path of its checkpoint.
        output_dir: The folder to write. It is made if it does not exist.

    Returns:
        The files: `pretraining.pth` with `{"model": weights}` of a pretrained model, `finetuned.pth` with
        `{"classifier": weights}` of a classifier without the defense, and both of a
        [`NIMForRobustImageClassification`].

    Raises:
        ValueError: It is none of these models, or has settings that the authors' code does not know.
        OSError: There is no such checkpoint.
    """
    if isinstance(model, (str, os.PathLike)):
        model = _load_nim(os.fspath(model))
    if not isinstance(model, (NIMForPreTraining, NIMForImageClassification)):
        raise ValueError(f"only NIM models with a decoder or a head can be converted, got a {type(model).__name__}")
    refuse_other_classifier(model.config)
    _check_config(model.config)
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    denoiser = {k.removeprefix("denoiser."): v for k, v in weights.items() if k.startswith("denoiser.")}
    rest = {k: v for k, v in weights.items() if not k.startswith("denoiser.")}
    if isinstance(model, NIMForPreTraining):
        files = {_PRETRAINING_NAME: {"model": rest}}
    else:
        files = {_PRETRAINING_NAME: {"model": denoiser}} if denoiser else {}
        files[_FINETUNED_NAME] = {"classifier": rest}
    converted = {
        name: {entry: to_authors_state_dict(part) for entry, part in content.items()}
        for name, content in files.items()
    }
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    for name, content in converted.items():
        torch.save(content, Path(output_dir) / name)
    return [Path(output_dir) / name for name in converted]


def _check_config(config: NIMConfig) -> None:
    """Refuse what the authors' code cannot express, and warn of what has to be set there."""
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
            f'the model was made for patch_statistics="{config.patch_statistics}"; the authors\' code uses the'
            " statistics of the image before noise and denoises differently"
        )


def _load_nim(name_or_path: str) -> NIMForPreTraining | NIMForImageClassification:
    """Load a checkpoint of a model with a decoder or a head by its own class.

    Raises:
        ValueError: It is no such model.
        OSError: There is no such checkpoint.
    """
    kind = saved_class(name_or_path, {}, saved_config(name_or_path, {}))
    for cls in (NIMForPreTraining, NIMForRobustImageClassification, NIMForImageClassification):
        if cls.__name__ == kind:
            return cls.from_pretrained(name_or_path)
    raise ValueError(f"{name_or_path} holds no NIM model with a decoder or a head, but {kind or 'no weights'}")


def save_model(model: NIMForPreTraining | NIMForRobustImageClassification, output_dir: str | Path) -> None:
    """Save a model with the image processor that its config describes."""
    model.save_pretrained(output_dir)
    NIMImageProcessor.from_config(model.config).save_pretrained(output_dir)


def save_bfloat16(name_or_path: str, output_dir: str | Path) -> None:
    """Store a model with weights rounded to bfloat16, which halves its files.

    Its config still says float32, so `from_pretrained` gives a model that computes in float32 with rounded weights,
    and attacks and certificates need no option. Measure what the rounding does to accuracy.

    Args:
        name_or_path: A checkpoint of [`NIMForPreTraining`] or of a classifier, with its image processor.
        output_dir: The folder to write. It is made if it does not exist.

    Raises:
        ValueError: It is none of these models, or `output_dir` is the checkpoint's own folder.
        OSError: There is no such checkpoint, or it has no image processor.
    """
    if Path(name_or_path).resolve() == Path(output_dir).resolve():
        raise ValueError(f"{output_dir} holds the only copy of the exact weights; write to another folder")
    model, processor = _load_nim(name_or_path).float(), NIMImageProcessor.from_pretrained(name_or_path)
    rounded = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.save_pretrained(output_dir, state_dict=rounded)
    processor.save_pretrained(output_dir)


__all__ = [
    "convert_authors_checkpoint",
    "convert_authors_state_dict",
    "save_authors_checkpoint",
    "save_bfloat16",
    "to_authors_state_dict",
]
