# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Helpers to load one kind of checkpoint into another kind of model."""

import copy
import os
from collections.abc import Callable

from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import CONFIG_NAME

from .configuration_nim import NIMConfig


# Arguments of from_pretrained that choose the files to read.
_HUB_ARGUMENTS = (
    "cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token", "use_safetensors",
    "variant",
)  # fmt: skip


def source_arguments(kwargs: dict) -> dict:
    """Return those arguments of a `from_pretrained` that choose the files to read."""
    return {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}


def saved_config(name_or_path, kwargs: dict) -> NIMConfig | None:
    """Read the config of a checkpoint, or return None if weights are given as a state dict.

    Raises:
        OSError: There is no checkpoint.
    """
    if name_or_path is None or kwargs.get("state_dict") is not None:
        return None
    if os.path.isdir(name_or_path) and kwargs.get("config") is None:
        path = os.path.join(name_or_path, kwargs.get("subfolder", ""), CONFIG_NAME)
        if not os.path.isfile(path):
            # transformers would continue with the default config.
            raise OSError(f"{name_or_path} is no checkpoint: it has no file {path}")
    if kwargs.get("config") is None:
        content, _ = NIMConfig.get_config_dict(name_or_path, **source_arguments(kwargs))
        if "model_type" not in content:
            raise OSError(f"{name_or_path} is no checkpoint: it has no {CONFIG_NAME}, or one without a model_type")
    return NIMConfig.from_pretrained(name_or_path, **source_arguments(kwargs))


def saved_architectures(name_or_path, kwargs: dict) -> list[str]:
    """Return the classes that a checkpoint names, an empty list if weights are given as a state dict."""
    config = saved_config(name_or_path, kwargs)
    return [] if config is None else config.architectures or []


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


def load_derived_weights(from_pretrained: Callable, state_dict: dict, name_or_path, model_args: tuple, kwargs: dict):
    """Call `from_pretrained` with weights that were derived from a checkpoint instead of read from it.

    Args:
        from_pretrained: That of the class to load.
        state_dict: The derived weights.
        name_or_path, model_args, kwargs: The arguments with which it was called.
    """
    source, options = source_arguments(kwargs), {k: v for k, v in kwargs.items() if k not in _HUB_ARGUMENTS}
    config = options.pop("config", None)
    # Not NIMConfig: if the checkpoint carries its code, transformers loads that class a second time.
    if not isinstance(config, PreTrainedConfig):
        default = NIMConfig()
        known = {k: v for k, v in options.items() if hasattr(default, k) and k not in ("dtype", "torch_dtype")}
        options = {k: v for k, v in options.items() if k not in known}
        config = NIMConfig.from_pretrained(config or name_or_path, **source, **known)
    # The derived weights are a denoiser's, or a NIM encoder's that starts from it.
    config = copy.deepcopy(config)
    config.classifier_config = config.classifier_input = None
    loaded = from_pretrained(None, *model_args, config=config, state_dict=state_dict, **options)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.config.name_or_path = str(name_or_path)
    return loaded
