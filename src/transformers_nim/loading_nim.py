# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Helpers for loading one kind of checkpoint into another kind of model."""

import os
from collections.abc import Callable

from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import CONFIG_NAME

from .configuration_nim import NIMConfig


# Arguments of from_pretrained that say which files to read.
_HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "use_safetensors",
    "variant",
)


def source_arguments(kwargs: dict) -> dict:
    """Of the arguments of a `from_pretrained`, those that say which files to read."""
    return {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}


def saved_architectures(name_or_path, kwargs: dict) -> list[str]:
    """The classes that a checkpoint says it is of; none where weights are given as a state dict."""
    if name_or_path is None or kwargs.get("state_dict") is not None:
        return []
    if os.path.isdir(name_or_path) and kwargs.get("config") is None:
        path = os.path.join(name_or_path, kwargs.get("subfolder", ""), CONFIG_NAME)
        if not os.path.isfile(path):
            # transformers would go on with the default config.
            raise OSError(f"{name_or_path} is no checkpoint: it has no file {path}")
    if kwargs.get("config") is None:
        content, _ = NIMConfig.get_config_dict(name_or_path, **source_arguments(kwargs))
        if "model_type" not in content:
            raise OSError(f"{name_or_path} is no checkpoint: it has no {CONFIG_NAME}, or one without a model_type")
    return NIMConfig.from_pretrained(name_or_path, **source_arguments(kwargs)).architectures or []


def load_derived_weights(from_pretrained: Callable, state_dict: dict, name_or_path, model_args: tuple, kwargs: dict):
    """`from_pretrained` with weights that were derived from the checkpoint instead of read from it."""
    source, options = source_arguments(kwargs), {k: v for k, v in kwargs.items() if k not in _HUB_ARGUMENTS}
    config = options.pop("config", None)
    # Not NIMConfig: transformers loads that of a checkpoint which carries its code apart from this module.
    if not isinstance(config, PreTrainedConfig):
        default = NIMConfig()
        known = {k: v for k, v in options.items() if hasattr(default, k) and k not in ("dtype", "torch_dtype")}
        options = {k: v for k, v in options.items() if k not in known}
        config = NIMConfig.from_pretrained(config or name_or_path, **source, **known)
    loaded = from_pretrained(None, *model_args, config=config, state_dict=state_dict, **options)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.config.name_or_path = str(name_or_path)
    return loaded
