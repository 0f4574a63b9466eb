# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Collect what is to be published of a folder, and say what must be put right before."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from yaml import YAMLError, safe_load

from ..model import modeling_nim
from ..robustness.classifiers import model_hash
from ..utils.output_folder import LOCK
from .model_card import architecture_of, card_differences, card_files, empty_model, read_config, read_inputs
from .private_text import SecretScanner, private_parts
from .remote_code import code_files, is_own_code, remote_code_files


# What training leaves beside a model and is no part of it.
LOCAL_FILES = [
    "checkpoint-*",
    "checkpoint-*/**",
    "logs/**",
    "best/**",
    "pictures/**",
    "work/**",
    "*.partial",
    "*.partial/**",
    "*.old/**",
    # Of a run that was killed.
    f"*{LOCK}*",
    "__pycache__/**",
    "*/__pycache__/**",
]
# Folders of tools, which are skipped wherever they lie: what git and `hf download` keep for themselves.
_TOOLS = {".git", ".cache"}
# Formats that execute code when they are read.
_UNSAFE = {".bin", ".ckpt", ".joblib", ".npy", ".pickle", ".pkl", ".pt", ".pth"}
_TEXT = {".csv", ".json", ".jsonl", ".md", ".txt", ".yaml", ".yml"}
# All else is refused: a list of what is dangerous or private is never complete.
_ALLOWED = _TEXT | {".jpg", ".png", ".py", ".safetensors"}
_NAMES = {"LICENSE", "NOTICE"}
# The Hub makes it itself, and its LFS files need it.
KEPT = ".gitattributes"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass
class Publication:
    """Files to upload, their repository, and problems with them.

    Attributes:
        folder: Where it lies.
        repo_id: Where it goes.
        files: By its path in the repository, the content of every file or where it lies.
        problems: What has to be put right before; nothing is uploaded while there are any.
        notes: What was not looked at, and why.
    """

    folder: Path
    repo_id: str
    files: dict[str, Path | bytes]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        content = self.files[name]
        return content if isinstance(content, bytes) else content.read_bytes()


def prepare(folder: str | Path, repo_id: str, with_code: bool = False, token: str | None = None) -> Publication:
    """Collect the files of a folder and look for what must not be published; nothing is sent or written.

    Args:
        folder: A checkpoint with its card.
        repo_id: Name of the repository, such as `"name/nim-vit-tiny"`.
        with_code: Whether to add the Python files of [`remote_code_files`].
        token: One that must be in no file, besides that of `hf auth login` and everything that detect-secrets finds.

    Returns:
        The publication, with its problems.

    Raises:
        ValueError: The folder does not exist, or the name is none of a repository.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; pass one that holds a checkpoint and its card")
    check_repository(repo_id)
    publication = _collect(folder, repo_id)
    malformed = _malformed(publication)
    # What is made from files that cannot be read cannot be compared.
    card = [] if malformed else _card_problems(publication, with_code)
    weights = [] if malformed else [*_missing(publication), *_other_weights(publication)]
    kinds = [problem for name in publication.files for problem in _wrong_kind(publication, name)]
    kinds += [] if malformed else _foreign_code(publication)
    texts, unreadable = _texts(publication)
    publication.problems += [*malformed, *card, *weights, *kinds, *unreadable]
    # Weights are loaded only when they are known to be whole, those of `config.json`, and in a format that is safe.
    if not (malformed or weights or kinds or unreadable):
        publication.problems += _results_of_other_weights(publication)
    publication.problems += _private_parts(publication, texts, token)
    return publication


def check_repository(name: str) -> None:
    """Refuse a name that no repository of the Hub can have.

    Raises:
        ValueError: It is none.
    """
    try:
        validate_repo_id(name)
        # Older versions of huggingface_hub take letters that the Hub refuses, and a line break at the end.
        is_valid = re.fullmatch(r"[\w./-]+", name, re.ASCII) is not None
    except HFValidationError:
        is_valid = False
    if not is_valid:
        raise ValueError(
            f"{name!r} is no name of a repository; pass OWNER/NAME, each of at most 96 of the characters a-z, A-Z,"
            " 0-9, -, _ and ., with neither - nor . at its ends, and without --, .. and the ending .git"
        )


def _collect(folder: Path, repo_id: str) -> Publication:
    """Return all files of a folder that belong to a model; names and links that cannot be published are problems."""
    publication = Publication(folder, repo_id, {})
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if _TOOLS & set(path.relative_to(folder).parts) or any(fnmatch(name, p) for p in LOCAL_FILES):
            continue
        problem = _wrong_place(path, name, folder)
        if problem is not None:
            publication.problems.append(problem)
        elif path.is_file():
            publication.files[name] = path
    return publication


def _wrong_place(path: Path, name: str, folder: Path) -> str | None:
    """Say why a file cannot be published under its name or as the link that it is, if so."""
    if not name.isprintable():
        # It would also write into what is shown to the user.
        return f"{name!r} has characters in its name that cannot be shown, such as a line break; rename it"
    if not path.is_symlink():
        return None
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return f"{name} is a link that leads nowhere or in a circle; remove it"
    # Their targets would be uploaded, or, of folders, nothing.
    if target.is_dir() or not target.is_relative_to(folder.resolve()):
        return f"{name} is a link to a folder or out of this one; remove it or copy what it leads to"
    return None


def _card_problems(publication: Publication, with_code: bool) -> list[str]:
    """Say what is wrong with the card and missing beside it; add the code."""
    folder, problems = publication.folder, []
    try:
        difference = card_differences(folder)
        if difference:
            problems.append(
                "the card does not agree with the results. If they are right, run python -m"
                f" transformers_nim.commands.cards {folder}. What differs:\n{difference}"
            )
        if with_code:
            generated = {**remote_code_files(folder), **card_files(folder, with_code=True)}
            publication.files.update({name: text.encode() for name, text in generated.items()})
    except ValueError as error:
        problems.append(str(error))
    except (AttributeError, LookupError, TypeError) as error:
        problems.append(
            "card.json, config.json or a file that card.json names is not as transformers-nim writes it"
            f" ({type(error).__name__}: {error}); write it again"
        )
    return problems


def _malformed(publication: Publication) -> list[str]:
    """Find files that are not of the format that their names say."""
    problems = []
    for name in publication.files:
        path = Path(name)
        try:
            if path.suffix == ".json":
                content = json.loads(publication.read(name))
                if name in ("card.json", "config.json", _INDEX) and not isinstance(content, dict):
                    problems.append(f"{name} must hold an object, not {type(content).__name__}; write it again")
                if name == _INDEX and not isinstance(content.get("weight_map"), dict):
                    problems.append(f"{name} has no weight_map; save the model again")
            elif path.suffix in (".yaml", ".yml"):
                safe_load(publication.read(name))
            elif name == "README.md":
                ModelCard(publication.read(name).decode(), ignore_metadata_errors=True)
        except UnicodeDecodeError:
            # Told with the other texts.
            continue
        except (YAMLError, ValueError) as error:
            kind = "JSON" if path.suffix == ".json" else "YAML"
            reason = " ".join(str(error).split())
            problems.append(f"{name} cannot be read as {kind} ({reason}); correct it, or write it again")
    return problems


def _result_files(publication: Publication) -> list[str]:
    """Return the result files that the card names; none if `card.json` is wrong, which is told with the card."""
    try:
        return read_inputs(publication.folder).get("results", [])
    except ValueError:
        return []


def _missing(publication: Publication) -> list[str]:
    needed = ["README.md", "config.json", "preprocessor_config.json", *_result_files(publication)]
    if _INDEX in publication.files:
        needed += sorted(set(json.loads(publication.read(_INDEX))["weight_map"].values()))
    else:
        needed.append(_WEIGHTS)
    return [f"{name} is missing" for name in needed if name not in publication.files]


def _other_weights(publication: Publication) -> list[str]:
    """Compare names and shapes of the weights with the model that `config.json` describes."""
    if "config.json" not in publication.files or not {_WEIGHTS, _INDEX} & publication.files.keys():
        return []
    try:
        model = empty_model(read_config(publication.folder))
    except (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        return [f"config.json describes no model of transformers-nim: {error}; save the model again"]
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = []
    if {_WEIGHTS, _INDEX} <= publication.files.keys():
        problems.append(f"there are both {_WEIGHTS} and {_INDEX}; remove the weights that are not the model's")
    weights = {_WEIGHTS: None}
    if _WEIGHTS not in publication.files:
        weights = dict.fromkeys(json.loads(publication.read(_INDEX))["weight_map"].values())
    there: dict[str, list[int]] = {}
    for name in sorted(weights):
        try:
            with safe_open(publication.folder / name, framework="pt") as file:
                there |= {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            # Told as missing or broken; what else there would be to say follows from that.
            return problems
    if _WEIGHTS not in publication.files:
        # Only what the index names is looked for in the parts.
        listed = json.loads(publication.read(_INDEX))["weight_map"].keys()
        if listed != there.keys():
            problems.append(f"{_INDEX} and the files that it names differ in {_some(listed ^ there.keys())}")
    other = [
        f"{n}: {there[n]}, not {wanted[n]}" for n in sorted(wanted.keys() & there.keys()) if there[n] != wanted[n]
    ]
    for what, names in (
        ("missing", sorted(wanted.keys() - there.keys())),
        ("unexpected", sorted(there.keys() - wanted.keys())),
        ("of other shapes", other),
    ):
        if names:
            problems.append(
                f"the weights are not those of the {type(model).__name__} that config.json describes;"
                f" {len(names)} {what}: {_some(names)}. Save model and configuration together"
            )
    return problems


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _wrong_kind(publication: Publication, name: str) -> list[str]:
    path = Path(name)
    if path.suffix == ".py" and publication.read(name).decode(errors="replace") != code_files().get(name):
        return [f"{name} is no file of transformers-nim; remove it, or pass --with_code for the package's own"]
    if path.suffix in _UNSAFE:
        return [f"{name}: such files can execute code when they are read; save weights as safetensors"]
    hidden = [part for part in path.parts if part.startswith(".")]
    if name == KEPT or (path.parts[0] == ".eval_results" and len(hidden) == 1 and path.suffix in _TEXT):
        return []
    if hidden:
        return [f"{name} is hidden, as settings and secrets are; remove it"]
    if path.suffix not in _ALLOWED and path.name not in _NAMES:
        kinds = ", ".join(sorted(_ALLOWED | _NAMES))
        return [f"{name} is of no kind that is published, which are {kinds}; remove it"]
    return []


def _foreign_code(publication: Publication) -> list[str]:
    """Find configs that let transformers load code that is not the package's own, such as another repository's."""
    problems = []
    for name in publication.files:
        if Path(name).suffix == ".json":
            foreign = [one for one in _named_code(json.loads(publication.read(name))) if not is_own_code(one)]
            if foreign:
                problems.append(
                    f"{name} names code that is not transformers-nim's ({_some(foreign)}), which would be executed for"
                    " users who pass trust_remote_code=True; remove its auto_map and custom_pipelines (--with_code"
                    " writes the package's own)"
                )
    return problems


def _named_code(content: Any) -> Iterator[str]:
    """Yield the classes that a config names in `auto_map` and `custom_pipelines`, at any depth."""
    if isinstance(content, list):
        for one in content:
            yield from _named_code(one)
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        if key == "auto_map":
            entries = value.values() if isinstance(value, dict) else [value]
            yield from (str(entry) for entry in entries)
        elif key == "custom_pipelines":
            tasks = value.values() if isinstance(value, dict) else [value]
            yield from (str(task.get("impl") if isinstance(task, dict) else task) for task in tasks)
        else:
            yield from _named_code(value)


def _texts(publication: Publication) -> tuple[dict[str, str], list[str]]:
    """Return all texts of a publication, the metadata of weights among them, and what cannot be read."""
    texts: dict[str, str] = {}
    problems = []
    for name in publication.files:
        path = Path(name)
        if path.suffix == ".safetensors":
            try:
                with safe_open(publication.folder / name, framework="pt") as file:
                    list(file.keys())
                    metadata = file.metadata() or {}
                texts[f"{name} (metadata)"] = "\n".join(map("=".join, sorted(metadata.items())))
            except (SafetensorError, OSError) as error:
                problems.append(f"{name} cannot be read: {error}")
        elif path.suffix in _TEXT or path.name in _NAMES | {KEPT}:
            try:
                texts[name] = publication.read(name).decode()
            except UnicodeDecodeError:
                problems.append(f"{name} is no text in UTF-8, as files of its name are; save it as such, or remove it")
    return texts, problems


def _private_parts(publication: Publication, texts: Mapping[str, str], token: str | None) -> list[str]:
    """Look for secrets and absolute paths; note where secrets are not looked for."""
    tokens = [one for one in (token, get_token()) if one]
    scanner = None
    try:
        scanner = SecretScanner()
    except ImportError:
        publication.notes.append(
            "texts were not scanned for secrets, your token excepted: pip install 'transformers-nim[push]' installs"
            " detect-secrets, which does that"
        )
    return [problem for name, text in texts.items() for problem in private_parts(name, text, tokens, scanner)]


def _results_of_other_weights(publication: Publication) -> list[str]:
    """Compare the weights with the hash of the model that results carry."""
    problems = []
    hashes: dict[str, str] = {}
    for name in _result_files(publication):
        content = json.loads(publication.read(name))
        settings = content.get("settings") if isinstance(content, dict) else None
        # Training changes the weights, so its results carry none.
        if not isinstance(settings, dict):
            continue
        if not settings.get("model_hash"):
            publication.notes.append(
                f"{name} does not say of which weights it is, so nobody can tell if it is of these"
            )
            continue
        # Certificates can be made in half precision, which rounds the weights.
        dtype = settings.get("dtype", "float32")
        if dtype not in ("float32", "bfloat16", "float16"):
            problems.append(f"{name} has the dtype {dtype!r}, which no evaluation writes; measure the model again")
            continue
        if dtype not in hashes:
            hashes[dtype] = _hash(publication.folder, dtype)
        if settings["model_hash"] != hashes[dtype]:
            problems.append(
                f"{name} was measured on another model (hash {settings['model_hash']}) than the one in this folder"
                f" ({hashes[dtype]}): weights or configuration have changed since. Measure this model, or put"
                " back the one that was measured"
            )
    return problems


def _hash(folder: Path, dtype: str) -> str:
    """Return the hash that results of a model carry."""
    cls = getattr(modeling_nim, architecture_of(read_config(folder)))
    model = cls.from_pretrained(folder, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True)
    return model_hash(model)
