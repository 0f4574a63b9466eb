# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Load a classifier and hand it to attacks at any sigma."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Number
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageClassification
from transformers.modeling_utils import PreTrainedModel
from transformers.pipelines import Pipeline

from ..attacks.randomness import Classifier
from ..model.configuration_nim import NIMConfig
from ..model.external_classifier_nim import check_trained, load_image_processor
from ..model.image_processing_nim import NIMImageProcessor
from ..model.pixel_classifier_nim import PixelClassifier, device_of, pipeline_options, unwrap


# Arguments: sigma in units of 0..255 pixels (None: defense off), gradient mode, and whether the noise is fixed.
MakeClassifier = Callable[[float | None, str, bool], Classifier]


def load_with_processor(name_or_path: str, device: torch.device, **source: Any) -> tuple[PreTrainedModel, Any]:
    """Load any image classifier of transformers, in eval mode and float32, and its image processor.

    Args:
        name_or_path: A folder or a repository on the Hub.
        device: Where the model goes.
        source: `cache_dir`, `token` and `revision`.

    Raises:
        OSError: There is no such checkpoint, or it cannot be read.
        ValueError: It is no trained image classifier.
    """
    model, info = AutoModelForImageClassification.from_pretrained(
        name_or_path, dtype=torch.float32, output_loading_info=True, **source
    )
    check_trained(name_or_path, model, info)
    if isinstance(model.config, NIMConfig):
        return model.to(device).eval(), NIMImageProcessor.from_config(model.config)
    return model.to(device).eval(), load_image_processor(name_or_path, **source)


def has_defense(model: nn.Module) -> bool:
    """Return whether a model, wrapped or not, adds noise and denoises before it classifies."""
    core = unwrap(model)
    return hasattr(getattr(core, "config", None), "defense_sigma") and hasattr(core, "denoiser")


@dataclass(frozen=True)
class Subject:
    """A model that is evaluated or attacks another, with what is needed to use it.

    Attributes:
        model: The model, in eval mode.
        name: What to call it.
        image_processor: Its image processor, if it has one.
        image_mean: Per-channel mean of the normalization, if it is not that of the image processor or of the model.
        image_std: Standard deviation, likewise.
        options: Options of the De^3 defense that came with the model: `sigma`, `num_samples`, `vote`.
        own_noise: See [`ModelFacts`].
        random: Whether the model is known to draw noise of its own; `None` if that is to be found out.
    """

    model: nn.Module
    name: str
    image_processor: Any = None
    image_mean: Sequence[float] | None = None
    image_std: Sequence[float] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    own_noise: str | None = None
    random: bool | None = None

    @property
    def core(self) -> Any:
        """The model without what wraps it."""
        return unwrap(self.model)

    @property
    def config(self) -> Any:
        """The model's config; `None` for a module without one."""
        return getattr(self.core, "config", None)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return device_of(self.model)

    def maker(self, seed: int, **options: Any) -> Callable[[float | None, str, bool], PixelClassifier]:
        """Return a function that makes the model's [`PixelClassifier`] for a sigma; see [`classifier_maker`]."""
        own: dict[str, Any] = {"image_mean": self.image_mean, "image_std": self.image_std}
        return classifier_maker(self.model, self.image_processor, seed, own_noise=self.own_noise, **own, **options)

    def plain(self) -> PixelClassifier:
        """Return the model without a defense, as far as it has one."""
        return self.maker(0)(None, "full", False)

    def listen(self, pixels: torch.Tensor) -> "Subject":
        """Return the subject with its own noise, found out on a few images `(batch, channels, height, width)`.

        Raises:
            ValueError: The model does not take the images.
        """
        if has_defense(self.model) or self.random is False:
            return self
        plain = self.plain()
        try:
            found = plain.find_noise(pixels.to(self.device), known=bool(self.random))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError) as error:
            shape = "x".join(map(str, pixels.shape[1:]))
            raise ValueError(
                f"{self.name} cannot classify images of {shape} (channels x height x width): {error}"
            ) from error
        return replace(self, own_noise=found)


def make_subject(
    model: Any,
    name: str | None = None,
    image_processor: Any = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    device: torch.device | str | None = None,
    random: bool | None = None,
    **source: Any,
) -> Subject:
    """Return a model of any kind as a subject.

    Args:
        model: A module in eval mode, a pipeline, a [`PixelClassifier`], or the name or path of a checkpoint.
        name: What to call it; by default its name or the name of its class.
        image_processor: Its image processor.
        image_mean: Per-channel mean of the normalization.
        image_std: Per-channel standard deviation.
        device: Where the model goes. By default it stays where it is; one that is loaded goes to the GPU, if any.
        random: See [`evaluate_robustness`].
        source: `cache_dir`, `token` and `revision` of a checkpoint.

    Raises:
        ValueError: It is none of these, or an option is for another kind of model.
    """
    options: Mapping[str, Any] = {}
    if isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)
        where = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        loaded, own = load_with_processor(path, torch.device(device or where or "cpu"), **source)
        # Where a folder lies on this machine is nobody's business: results are published.
        given_name = Path(path).resolve().name if os.path.isdir(path) else path
        model, name, image_processor = loaded, name or given_name, image_processor or own
    elif isinstance(model, Pipeline):
        image_processor, options = image_processor or model.image_processor, pipeline_options(model)
        model = model.model
    elif isinstance(model, PixelClassifier):
        chosen = model.forward_kwargs
        options = {key: chosen[key] for key in ("sigma", "num_samples", "vote") if key in chosen}
        _check_evaluable(model)
        # False may have been found out by listening once, to few images.
        random = True if random is None and model.random else random
        image_mean, image_std = image_mean or model.image_mean, image_std or model.image_std
        model = model.model
    if not isinstance(model, nn.Module):
        raise ValueError(
            "the model must be a torch.nn.Module from pixels to logits, a model of transformers or timm, a pipeline,"
            f" or the name or path of a checkpoint; got a {type(model).__name__}"
        )
    if device is not None:
        model = model.to(device)
    if random is not None and has_defense(model):
        raise ValueError(f"random ({random}) is for models without a sigma; {type(unwrap(model)).__name__} has one")
    core: Any = unwrap(model)
    path = getattr(getattr(core, "config", None), "name_or_path", "") or type(core).__name__
    name = name or Path(path).name
    return Subject(model, name, image_processor, image_mean, image_std, options, random=random)


def _check_evaluable(classifier: PixelClassifier) -> None:
    """Check that a classifier has no options that an evaluation would drop.

    Raises:
        ValueError: It has some.
    """
    used = ("sigma", "num_samples", "vote")
    dropped = {name: value for name, value in classifier.forward_kwargs.items() if name not in used}
    for name, usual in (("gradient", "full"), ("fixed_noise", False), ("autocast_dtype", None)):
        if (value := getattr(classifier, name)) != usual:
            dropped[name] = value
    for name, value in dropped.items():
        raise ValueError(
            f"an evaluation cannot keep {name}={value!r} of the PixelClassifier: leave it out, or wrap the model in a"
            " module that has it built in"
        )


def classifier_maker(
    model: nn.Module,
    image_processor: Any,
    seed: int,
    autocast_dtype: torch.dtype | None = None,
    num_samples: int = 1,
    vote: str = "mean",
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    own_noise: str | None = None,
) -> Callable[[float | None, str, bool], PixelClassifier]:
    """Return a function that makes a [`PixelClassifier`] of a model for a sigma.

    Args:
        model: An image classifier in eval mode.
        image_processor: Its image processor, for the normalization.
        seed: Seed of the fixed noise.
        autocast_dtype: See [`PixelClassifier`].
        num_samples: Noise draws that a prediction combines.
        vote: How it combines them, `"mean"` or `"majority"`.
        image_mean: Per-channel mean of the normalization.
        image_std: Per-channel standard deviation.
        own_noise: See [`ModelFacts`]. Noise that no seed repeats is never fixed.
    """
    common = {
        "image_processor": image_processor,
        "image_mean": image_mean,
        "image_std": image_std,
        "seed": seed,
        "autocast_dtype": autocast_dtype,
    }

    def make(sigma: float | None, gradient: str = "full", fixed_noise: bool = False) -> PixelClassifier:
        if not has_defense(model):
            if sigma is not None:
                raise ValueError(
                    f"{type(unwrap(model)).__name__} has no defense, so sigma must be None, got {sigma!r}"
                )
            known = fixed_noise and own_noise == "seeded"
            return PixelClassifier(model, **common, random=own_noise is not None, fixed_noise=known)
        return PixelClassifier(
            model,
            sigma=sigma,
            gradient=gradient,
            fixed_noise=fixed_noise,
            num_samples=num_samples,
            vote=vote,
            **common,
        )

    return make


def model_hash(model: nn.Module) -> str:
    """Return a hash of weights and config, which tells whether a run continues with the same model.

    Of a module without a config it is that of its weights, of what `print(model)` shows, and of the public attributes
    of the module and its parts that are numbers, texts, None or tuples and lists of these.
    """
    core: Any = unwrap(model)
    # Fields at their defaults are left out: a new version of transformers may add some, and the hash must not change.
    config = core.config.to_diff_dict() if isinstance(core, PreTrainedModel) else _description(core)
    # Written when a model is saved, or when its code is put beside it.
    for name in ("_name_or_path", "transformers_version", "architectures", "dtype", "auto_map", "custom_pipelines"):
        config.pop(name, None)
    # Fields that recorded results are older than; at these values the model is the same.
    for name, value in (("denoise", True), ("freeze_denoiser", True)):
        if config.get(name) is value:
            del config[name]
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(core.state_dict().items()):
        digest.update(name.encode())
        if not isinstance(tensor, torch.Tensor):
            # State that a module keeps besides tensors.
            digest.update(repr(tensor).encode())
            continue
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _description(module: nn.Module) -> dict[str, Any]:
    """Return what tells modules without a config apart, besides their weights."""

    def is_plain(value: Any) -> bool:
        if isinstance(value, (tuple, list)):
            return all(map(is_plain, value))
        return value is None or isinstance(value, (Number, str))

    attributes = {
        name: {key: value for key, value in vars(part).items()
               if not key.startswith("_") and key != "training" and is_plain(value)}
        for name, part in module.named_modules()
    }  # fmt: skip
    kind = type(module)
    return {"module": repr(module), "class": f"{kind.__module__}.{kind.__qualname__}", "attributes": attributes}
