# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Read what a training starts from: the checkpoint's config, which it inherits, its name, license and hash."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.repocard import metadata_load
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from ..model.configuration_nim import NIMConfig
from ..model.loading_nim import saved_class, saved_config
from ..utils.text_table import plural
from .checkpoints import file_hash


@dataclass(frozen=True)
class Start:
    """A NIM checkpoint to start from.

    Attributes:
        name: Its name on the Hub, or without its place what a folder's card calls it, or the folder's name.
        config: Its config.
        kind: Name of the model class that its weights are of.
        license: License on its card, or None.
        train_on: Images that it was trained on, or None if its files do not say.
    """

    name: str
    config: NIMConfig
    kind: str
    license: str | None = None
    train_on: str | None = None

    @classmethod
    def read(cls, name_or_path: str, cache_dir: str | None = None, token: str | None = None) -> "Start":
        """Read the small files of a checkpoint, and the names of its weights.

        Raises:
            OSError: There is no such checkpoint, or its weights cannot be read.
            ValueError: It holds no NIM model.
        """
        source = {"cache_dir": cache_dir, "token": token}
        config = saved_config(name_or_path, source)
        assert config is not None
        if config.model_type != "nim":
            raise ValueError(f"{name_or_path} holds no NIM model but {config.architectures}; see --model_name_or_path")
        kind = saved_class(name_or_path, source, config)
        if kind is None:
            raise ValueError(
                f"{name_or_path} has the config of a NIM model, and no weights of one (such as nim.layers)"
            )

        def find(file: str) -> Path | None:
            # A checkpoint need not have these files, nor the Hub be within reach.
            quiet = ("gated_repo", "missing_entries", "connection_errors")
            found = cached_file(
                name_or_path, file, **source, **{f"_raise_exceptions_for_{why}": False for why in quiet}
            )
            return Path(found) if found else None

        def read(file: str) -> dict[str, Any]:
            path = find(file)
            content = json.loads(path.read_text(encoding="utf-8")) if path else {}
            return content if isinstance(content, dict) else {}

        card, name = find("README.md"), name_or_path
        if Path(name_or_path).is_dir():
            name = read("card.json").get("name") or Path(name_or_path).resolve().name
        trained = read("all_results.json").get("arguments", {})
        license = (metadata_load(card) or {}).get("license") if card else None
        return cls(name, config, kind, license, trained.get("train_on"))

    @property
    def has_denoiser(self) -> bool:
        """Return whether it is a denoiser, or holds one."""
        is_robust = self.kind == "NIMForRobustImageClassification"
        return self.kind == "NIMForPreTraining" or (is_robust and self.config.denoise)

    @property
    def usual_images(self) -> str:
        """The images to train on if nothing else is asked for, as `--train_on` names them."""
        if self.has_denoiser:
            return "denoised"
        if self.kind == "NIMForRobustImageClassification":
            return "smoothed"
        return "noisy" if self.train_on == "noisy" else "clean"

    @property
    def label_names(self) -> list[str]:
        """The classes of a classifier; empty for a denoiser or an encoder alone."""
        if self.kind in ("NIMForPreTraining", "NIMModel"):
            return []
        return [name for _, name in sorted((self.config.id2label or {}).items())]

    def has_other_classes(self, label_names: Sequence[str]) -> bool:
        """Return whether a classifier needs a new head for these classes.

        Classes without names, on either side, are those at the same place.
        """
        ours = self.label_names
        if len(ours) != len(label_names):
            return True
        unnamed = (all(re.fullmatch(r"(LABEL_)?\d+", name) for name in names) for names in (ours, label_names))
        return not any(unnamed) and ours != list(label_names)

    def describe_head(self, label_names: Sequence[str]) -> str:
        """Return what becomes of its head in words."""
        ours, asked = self.label_names, plural(len(label_names), "class")
        if not self.has_other_classes(label_names):
            return f"that of the checkpoint, for the same {asked}"
        if not ours:
            return f"new, for {asked}"
        if len(ours) != len(label_names):
            return f"new, for {asked} instead of the checkpoint's {len(ours)}"
        if self.config.classifier_config is not None:
            return f"that of the checkpoint, whose {asked} are called otherwise"
        return f"new, since the checkpoint's {asked} are called otherwise"

    def describe(self) -> str:
        """Return name and kind in words."""
        names = self.label_names
        if not names:
            return f"{self.name}, {'a denoiser' if self.has_denoiser else 'an encoder'}"
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        return f"{self.name}, a classifier of {plural(len(names), 'class')} ({shown})"


def weights_hash(name_or_path: str, cache_dir: str | None = None, token: str | None = None) -> str:
    """Return the SHA-256 of a checkpoint's files of weights, wherever the checkpoint is and whatever it is called.

    Args:
        name_or_path: A checkpoint of NIM or ViT-MAE, on the Hub or in a folder.
        cache_dir: Folder of downloads.
        token: Token for private repositories.

    Raises:
        OSError: There is no such checkpoint, or it has no weights.
    """

    def find(name: str) -> Path | None:
        found = cached_file(
            name_or_path, name, cache_dir=cache_dir, token=token, _raise_exceptions_for_missing_entries=False
        )
        return Path(found) if found else None

    for single, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        whole, listed = find(single), find(index)
        if whole is not None:
            return file_hash(whole)
        if listed is not None:
            shards = sorted(set(json.loads(listed.read_text(encoding="utf-8"))["weight_map"].values()))
            hashes = [file_hash(Path(cached_file(name_or_path, name, cache_dir=cache_dir, token=token) or name))
                      for name in shards]  # fmt: skip
            return hashlib.sha256("".join(hashes).encode()).hexdigest()
    raise OSError(f"{name_or_path} has no weights")
