# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Helpers to tell what a checkpoint holds, and to load one kind of checkpoint into another kind of model."""

import copy
import json
import logging
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from .configuration_nim import NIMConfig


# Arguments of from_pretrained that choose the files to read.
_HUB_ARGUMENTS = (
    "cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token", "use_safetensors",
    "variant",
)  # fmt: skip
# What is raised by the libraries that read weights.
_DAMAGES = (SafetensorError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, json.JSONDecodeError)


def source_arguments(kwargs: dict) -> dict:
    """Return those arguments of a `from_pretrained` that choose the files to read."""
    return {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}


def saved_config(name_or_path, kwargs: dict, config_class: Any = NIMConfig) -> NIMConfig | None:
    """Read the config of a checkpoint, or return None if weights are given as a state dict.

    Args:
        name_or_path: The checkpoint.
        kwargs: Arguments of a `from_pretrained`.
        config_class: Class of the config.

    Raises:
        OSError: There is no checkpoint.
        ValueError: A field has a wrong value.
    """
    if name_or_path is None or kwargs.get("state_dict") is not None:
        return None
    if os.path.isdir(name_or_path) and kwargs.get("config") is None:
        path = os.path.join(name_or_path, kwargs.get("subfolder", ""), CONFIG_NAME)
        if not os.path.isfile(path):
            # transformers would continue with the default config.
            raise OSError(f"{name_or_path} is no checkpoint: it has no file {path}")
    if kwargs.get("config") is None:
        content, _ = config_class.get_config_dict(name_or_path, **source_arguments(kwargs))
        if "model_type" not in content:
            raise OSError(f"{name_or_path} is no checkpoint: it has no {CONFIG_NAME}, or one without a model_type")
    return config_class.from_pretrained(name_or_path, **source_arguments(kwargs))


def saved_class(name_or_path, kwargs: dict, config: NIMConfig | None = None) -> str | None:
    """Return the name of the model class whose weights a checkpoint holds, or None if it holds none of a NIM model.

    It is told by the names of the weights, which a header or an index holds. `architectures` of a config is what
    somebody wrote: it may be missing, or name a class of theirs.

    Args:
        name_or_path: The checkpoint.
        kwargs: Arguments of a `from_pretrained`.
        config: Its config. A robust model without a denoiser has the weights of an undefended classifier.

    Raises:
        OSError: The weights cannot be read.
    """
    names = kwargs.get("state_dict")
    if names is None:
        names = [] if name_or_path is None else _saved_names(name_or_path, kwargs)
    kind = class_of_weights(names)
    if kind == "NIMForImageClassification" and config is not None and not config.denoise:
        # Whoever takes the classifier alone out of a robust model keeps its config.
        return kind if kind in (config.architectures or []) else "NIMForRobustImageClassification"
    return kind


def class_of_weights(names: Iterable[str]) -> str | None:
    """Return the name of the model class that has weights of these names, or None if none has.

    A classifier may be that of a robust model without a denoiser.
    """
    parts = {name.partition(".")[0] for name in names}
    if "denoiser" in parts:
        return "NIMForRobustImageClassification"
    if "nim" not in parts:
        return "NIMModel" if parts & {"embeddings", "layers"} else None
    if "decoder" in parts:
        return "NIMForPreTraining"
    return "NIMForImageClassification" if parts & {"classifier", "fc_norm"} else "NIMModel"


def _saved_names(name_or_path, kwargs: dict) -> list[str]:
    """Return the names of a checkpoint's weights, none if it has no file of weights."""
    source = {k: v for k, v in source_arguments(kwargs).items() if k not in ("use_safetensors", "variant")}
    quiet = {f"_raise_exceptions_for_{why}": False for why in ("gated_repo", "missing_entries", "connection_errors")}
    is_safe, variant = kwargs.get("use_safetensors"), kwargs.get("variant")
    # In the order of transformers.
    files = [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME] if is_safe is not False else []
    files += [WEIGHTS_NAME, WEIGHTS_INDEX_NAME] if not is_safe else []
    for file in files:
        stem, _, suffix = file.rpartition(".")
        path = cached_file(name_or_path, f"{stem}.{variant}.{suffix}" if variant else file, **source, **quiet)
        if path is not None:
            with readable(path, (*_DAMAGES, RuntimeError)):
                return _names_in(path)
    return []


def _names_in(path: str) -> list[str]:
    if path.endswith(".json"):
        with open(path, encoding="utf-8") as file:
            index = json.load(file)
        files = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
            raise OSError(f"{path} is no index of weights: it has no weight_map from their names to files")
        if not isinstance(index.get("metadata"), dict):
            raise OSError(f"{path} is no index of weights: it has no metadata")
        return list(files)
    if path.endswith(".safetensors"):
        with safe_open(path, framework="pt") as weights:
            return list(weights.keys())
    weights = torch.load(path, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(weights, Mapping):
        raise OSError(f"{path} holds a {type(weights).__name__}, and no weights by name")
    return [str(name) for name in weights]


@contextmanager
def readable(source, errors: tuple[type[Exception], ...] = _DAMAGES) -> Iterator[None]:
    """Name the source of weights that are damaged.

    Args:
        source: Where they are read from.
        errors: What libraries raise that read damaged weights.

    Raises:
        OSError: They are damaged.
    """
    try:
        yield
    except errors as error:
        # The first sentence: torch's next one advises to load them unsafely.
        said = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise OSError(f"the weights in {source} are damaged or cannot be read safely: {said[:200]}") from error


def check_whole(name_or_path, info: Mapping, weights: Iterable[str]) -> None:
    """Check that a checkpoint has all weights of its denoiser, which nobody would train again.

    Args:
        name_or_path: The checkpoint, None for weights in memory.
        info: What `from_pretrained` returns with `output_loading_info=True`.
        weights: Names of the denoiser's weights in the model.

    Raises:
        ValueError: It has only a part of them.
    """
    missing = set(weights) & set(info["missing_keys"])
    if missing and name_or_path is not None:
        raise ValueError(
            f"{name_or_path} has only a part of a denoiser: {len(missing)} of its weights are missing, such as"
            f" {min(missing)}"
        )


def refuse_other_classifier(config: NIMConfig | None) -> None:
    """Check that a model's classifier is not of another kind.

    Raises:
        ValueError: It is of another kind.
    """
    if config is not None and config.classifier_config is not None:
        raise ValueError(
            f"the classifier of this model is a {config.classifier_config['model_type']}, and no NIM encoder with a"
            " head. Load it by NIMForRobustImageClassification.from_pretrained, whose classifier_model it is, or the"
            " denoiser alone by NIMForPreTraining.from_pretrained, which has a NIM encoder"
        )


def set_fields(config: NIMConfig, fields: dict) -> None:
    """Change fields of a config.

    Raises:
        ValueError: There is no such field, or its value is wrong.
    """
    for name, value in fields.items():
        if not hasattr(config, name):
            raise ValueError(f"NIMConfig has no field {name!r}")
        setattr(config, name, value)
    config.validate()


def check_same_architecture(denoiser: NIMConfig, classifier: NIMConfig) -> None:
    """Check that two NIM models can become parts of one model, which has one config.

    Raises:
        ValueError: They differ in size, normalization or activation; the message says where.
    """
    refuse_other_classifier(classifier)
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
                 "layer_norm_eps", "qkv_bias", "patch_shape", "image_shape", "num_channels", "image_mean",
                 "image_std"):  # fmt: skip
        ours, theirs = getattr(denoiser, name), getattr(classifier, name)
        if ours != theirs:
            raise ValueError(f"the denoiser's {name} is {ours}, the classifier's is {theirs}; they must agree")


def load_derived_weights(
    from_pretrained: Callable,
    state_dict: dict,
    name_or_path,
    model_args: tuple,
    kwargs: dict,
    config_class: Any,
):
    """Call `from_pretrained` with weights that were derived from a checkpoint instead of read from it.

    Args:
        from_pretrained: That of the class to load.
        state_dict: The derived weights.
        name_or_path, model_args, kwargs: The arguments with which it was called.
        config_class: Class of the config.
    """
    source, options = source_arguments(kwargs), {k: v for k, v in kwargs.items() if k not in _HUB_ARGUMENTS}
    config = options.pop("config", None)
    # Not NIMConfig: if the checkpoint carries its code, transformers loads that class a second time.
    if not isinstance(config, PreTrainedConfig):
        default = config_class()
        known = {k: v for k, v in options.items() if hasattr(default, k) and k not in ("dtype", "torch_dtype")}
        options = {k: v for k, v in options.items() if k not in known}
        config = config_class.from_pretrained(config or name_or_path, **source, **known)
    # The derived weights are a denoiser's, or a NIM encoder's that starts from it.
    config = copy.deepcopy(config)
    config.classifier_config = config.classifier_input = None
    with _named_in_reports(name_or_path):
        loaded = from_pretrained(None, *model_args, config=config, **options | {"state_dict": state_dict})
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.config.name_or_path = str(name_or_path or "")
    return loaded


@contextmanager
def _named_in_reports(name_or_path) -> Iterator[None]:
    """Put a checkpoint into reports on loading, in which transformers calls weights in memory None."""

    def name(record: logging.LogRecord) -> bool:
        if name_or_path is not None:
            record.msg = str(record.msg).replace(" from: None\n", f" from: {name_or_path}\n")
        return True

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(name)
    try:
        yield
    finally:
        logger.removeFilter(name)
