# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Convert checkpoints of the authors' code (github.com/youzunzhi/NIM-AdvDef) to folders for `from_pretrained`.

Their layout is that of MAE and timm: fused qkv projections, a mask token that NIM never uses, and position embeddings
stored although they are fixed. Sizes are read from the tensors; what tensors cannot tell is an argument.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..model.configuration_nim import NIM_SIZES, NIMConfig
from ..model.image_processing_nim import NIMImageProcessor
from ..model.modeling_nim import NIMForPreTraining, NIMForRobustImageClassification
from .to_authors import ELSEWHERE, IN_LAYER, LAYERS, load_nim
from .vit_mae import read_checkpoint_file


def convert_authors_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the tensors of a model of the authors' code to those of a model of this package.

    Args:
        state_dict: Weights of their pretraining model or of their classifier. A `module.` prefix, which distributed
            training leaves, is removed.

    Returns:
        Weights of [`NIMForPreTraining`] or [`NIMForImageClassification`].

    Raises:
        ValueError: A tensor's name does not belong to that layout, or a fused projection does not consist of three.
    """
    converted = {}
    for key, tensor in state_dict.items():
        key = str(key).removeprefix("module.")
        if key == "mask_token":
            continue
        name, leaf = key, ""
        if key.endswith((".weight", ".bias")):
            name, leaf = key.rsplit(".", 1)
            leaf = f".{leaf}"
        if name in ELSEWHERE:
            converted[f"{ELSEWHERE[name]}{leaf}"] = tensor
            continue
        blocks, _, rest = name.partition(".")
        index, _, part = rest.partition(".")
        prefix = LAYERS.get(blocks)
        if prefix is None or not index.isdigit() or part not in (*IN_LAYER, "attn.qkv"):
            raise ValueError(f"unexpected tensor {key!r}: not a checkpoint of the authors' NIM code")
        if part == "attn.qkv":
            if tensor.ndim == 0 or tensor.shape[0] % 3:
                raise ValueError(
                    f"tensor {key!r} of shape {tuple(tensor.shape)} is not made of three equal projections"
                )
            for projection, third in zip("qkv", tensor.chunk(3)):
                converted[f"{prefix}.{index}.attention.{projection}_proj{leaf}"] = third.clone()
        else:
            converted[f"{prefix}.{index}.{IN_LAYER[part]}{leaf}"] = tensor
    return converted


def config_from_weights(
    pretraining: Mapping[str, torch.Tensor],
    num_attention_heads: int | None = None,
    decoder_num_attention_heads: int | None = None,
    **overrides: Any,
) -> NIMConfig:
    """Reads the sizes of a model from its converted pretraining weights.

    Args:
        pretraining: Weights of [`NIMForPreTraining`].
        num_attention_heads: Heads of each encoder layer; known without asking for the paper's sizes.
        decoder_num_attention_heads: Heads of each decoder layer; likewise.
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
    depth = _depth(pretraining, "nim.layers.")
    decoder_depth = _depth(pretraining, "decoder.layers.")
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
    """Reads the weights of one of the authors' `.pt` files, executing nothing that is in it.

    Args:
        path: The file.
        entry: Under which name it holds the weights: `"model"` for pretraining, `"classifier"` for fine-tuning.

    Raises:
        ValueError: The file is not a checkpoint, or has no such entry.
        FileNotFoundError: There is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    # Training arguments (argparse.Namespace) lie beside the weights.
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
    """Converts the authors' checkpoints to a folder with model, config and image processor.

    Args:
        pretraining: Their pretraining checkpoint, `{"model": weights}`.
        output_dir: The folder to write.
        finetuned: Their fine-tuned classifier, `{"classifier": weights}`. With it the folder holds a
            [`NIMForRobustImageClassification`], without it a [`NIMForPreTraining`].
        num_attention_heads: Heads of each encoder layer, for sizes that are not the paper's.
        decoder_num_attention_heads: Heads of each decoder layer, for decoders that are not the paper's.
        norm_pix_loss: Whether the decoder predicts normalized patches, as in the authors' released setting.

    Returns:
        The converted model.

    Raises:
        ValueError: A file is not what it should be, or the number of heads has to be given.
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


def save_model(model: NIMForPreTraining | NIMForRobustImageClassification, output_dir: str | Path) -> None:
    model.save_pretrained(output_dir)
    NIMImageProcessor.from_config(model.config).save_pretrained(output_dir)


def save_bfloat16(name_or_path: str, output_dir: str | Path) -> None:
    """Stores a model with weights rounded to bfloat16, which halves its files.

    The folder's config still says float32: `from_pretrained` gives a model that computes in float32, with rounded
    weights, so that attacks and certificates need no option. What the rounding does to accuracy is to be measured.

    Args:
        name_or_path: A checkpoint of [`NIMForPreTraining`] or of one of the two classifiers.
        output_dir: The folder to write, which is made if need be.

    Raises:
        ValueError: It is none of these models, or its own folder is to be overwritten.
        OSError: There is no such checkpoint, or no image processor with it.
    """
    if Path(name_or_path).resolve() == Path(output_dir).resolve():
        raise ValueError(f"{output_dir} holds the only copy of the exact weights; write to another folder")
    model, processor = load_nim(name_or_path).float(), NIMImageProcessor.from_pretrained(name_or_path)
    rounded = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.save_pretrained(output_dir, state_dict=rounded)
    processor.save_pretrained(output_dir)
