# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Publishes a folder on the Hub: looks at it first, and at what has arrived afterwards."""

import hashlib
import json
import re
import tempfile
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open

from .cards import card_differences, card_files, read_inputs
from .remote_code import code_files, remote_code_files


# What training leaves beside a model and is no part of it.
LOCAL_FILES = [
    "checkpoint-*",
    "checkpoint-*/**",
    "logs/**",
    "best/**",
    "pictures/**",
    "pretraining/**",
    "*.partial",
    "*.partial/**",
    "*.old/**",
    "__pycache__/**",
]
# Formats that execute code when they are read.
_UNSAFE = {".bin", ".ckpt", ".joblib", ".npy", ".pickle", ".pkl", ".pt", ".pth"}
_TEXT = {"", ".csv", ".json", ".jsonl", ".md", ".py", ".txt", ".yaml", ".yml"}
_SECRETS = re.compile(
    r"\b(?:hf_|api_org_)[A-Za-z0-9]{16,}|\bgh[pousr]_[A-Za-z0-9]{30,}"
    r"|\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY"
)
_ABSOLUTE = re.compile(
    r"(?<![\w/.:~-])/(?:home|root|Users|tmp|mnt|var|opt|srv|media|data|work|workspace|scratch|content)/[^\s\"'`,;)]+"
    r"|\b[A-Za-z]:\\{1,2}[A-Za-z]\w*"
)
# The Hub makes it itself, and its LFS files need it.
_KEPT = ".gitattributes"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass
class Publication:
    """What is to be uploaded, and where to.

    Attributes:
        folder: Where it lies.
        repo_id: Where it goes.
        files: By its path in the repository, the content of every file or where it lies.
        problems: What has to be put right before; nothing is uploaded while there are any.
    """

    folder: Path
    repo_id: str
    files: dict[str, Path | bytes]
    problems: list[str] = field(default_factory=list)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    def read(self, name: str) -> bytes:
        """The content of a file."""
        content = self.files[name]
        return content if isinstance(content, bytes) else content.read_bytes()


def prepare(
    folder: str | Path, repo_id: str, with_code: bool = False, without_weights: bool = False, token: str | None = None
) -> Publication:
    """Collects the files of a folder and looks for what must not be published; nothing is sent or written.

    Args:
        folder: A checkpoint with its card.
        repo_id: Name of the repository, such as `"name/nim-vit-tiny"`.
        with_code: Whether to add the Python files of [`write_remote_code`].
        without_weights: Whether a folder may have no weights.
        token: One that must be in no file, besides everything that looks like one.

    Returns:
        The publication, with its problems.

    Raises:
        ValueError: The folder does not exist, or the name is none of a repository.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; pass one that holds a checkpoint and its card")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo_id):
        raise ValueError(f"{repo_id!r} is no name of a repository; pass OWNER/NAME")
    files: dict[str, Path | bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(".git") and not any(fnmatch(name, p) for p in LOCAL_FILES):
            files[name] = path
    publication = Publication(folder, repo_id, files)
    problems = publication.problems
    try:
        difference = card_differences(folder)
        if difference:
            problems.append(
                "the card does not agree with the results. If they are right, run python -m transformers_nim.cards"
                f" {folder}. What differs:\n{difference}"
            )
        problems += _missing(publication, without_weights)
        if with_code:
            generated = {**remote_code_files(folder), **card_files(folder, with_code=True)}
            # A folder without weights generates its configs; either way they refer to the code.
            files.update({name: text.encode() for name, text in generated.items()})
    except ValueError as error:
        problems.append(str(error))
    ours = code_files()
    for name in files:
        if name.endswith(".py") and publication.read(name).decode(errors="replace") != ours.get(name):
            problems.append(
                f"{name} is no file of transformers-nim; remove it, or pass --with_code for the package's own"
            )
        if Path(name).suffix in _UNSAFE:
            problems.append(f"{name}: such files can execute code when they are read; save weights as safetensors")
        if name.endswith(".safetensors"):
            problems += _broken_weights(publication, name)
        if Path(name).suffix in _TEXT:
            problems += _private_text(name, publication.read(name).decode(errors="replace"), token)
    return publication


def _missing(publication: Publication, without_weights: bool) -> list[str]:
    inputs = read_inputs(publication.folder)
    needed = [
        "README.md",
        "config.json",
        "preprocessor_config.json",
        *inputs.get("results", []),
        *inputs.get("plans", []),
    ]
    if _INDEX in publication.files:
        needed += sorted(set(json.loads(publication.read(_INDEX))["weight_map"].values()))
    elif not without_weights:
        needed.append(_WEIGHTS)
    problems = [f"{name} is missing" for name in needed if name not in publication.files]
    if f"{_WEIGHTS} is missing" in problems:
        problems.append("to publish a configuration and a card alone, pass --without_weights")
    if "model" in inputs and _WEIGHTS in publication.files:
        problems.append("the card says that there are no weights, but there are: remove `model` from card.json")
    return problems


def _broken_weights(publication: Publication, name: str) -> list[str]:
    try:
        with safe_open(publication.folder / name, framework="pt") as file:
            list(file.keys())
    except (SafetensorError, OSError) as error:
        return [f"{name} cannot be read: {error}"]
    return []


def _private_text(name: str, text: str, token: str | None) -> list[str]:
    problems = []
    known = [secret for secret in (token, get_token()) if secret and secret in text]
    if known or _SECRETS.search(text):
        line = next(n for n, x in enumerate(text.splitlines(), 1) if _SECRETS.search(x) or any(k in x for k in known))
        problems.append(
            f"{name}, line {line}: this looks like a token or a key; remove it, and revoke it if it is real"
        )
    found = _ABSOLUTE.search(text)
    if found:
        problems.append(
            f"{name}: {found.group()} is an absolute path, which says where files lie on a machine; remove it"
        )
    return problems


def stale_files(publication: Publication, revision: str = "main", token: str | None = None) -> list[str]:
    """Files on the Hub that [`upload`] would remove because the publication has none of that name; nothing is sent.

    Args:
        publication: What is to be uploaded.
        revision: Branch; where there is none yet, the new one begins with the files of `main`.
        token: Of the Hub; by default the one of `hf auth login`.

    Returns:
        Their names; none where there is no repository yet.
    """
    api = HfApi(token=token)
    repo_id = publication.repo_id
    if "/" not in repo_id:
        # `create_repo` fills in the owner of the token; reading would find somebody else's.
        repo_id = f"{api.whoami()['name']}/{repo_id}"
    try:
        return sorted(_remote_files(api, repo_id, revision) - publication.files.keys() - {_KEPT})
    except RepositoryNotFoundError:
        return []


def _remote_files(api: HfApi, repo_id: str, revision: str) -> set[str]:
    try:
        return set(api.list_repo_files(repo_id, revision=revision))
    except RevisionNotFoundError:
        return set(api.list_repo_files(repo_id))


def upload(
    publication: Publication, private: bool = False, revision: str = "main", token: str | None = None
) -> tuple[str, str]:
    """Makes a branch exactly the publication, in one commit, downloads everything again and compares.

    What lies on the branch and is not in the publication is removed, see [`stale_files`]: old weights or code would
    be loaded along with the new files.

    Args:
        publication: Without problems.
        private: Whether a new repository is private.
        revision: Branch, made if there is none.
        token: Of the Hub; by default the one of `hf auth login`.

    Returns:
        The repository's name and the commit.

    Raises:
        ValueError: There are problems, or what has arrived is something else.
    """
    if publication.problems:
        raise ValueError(f"{publication.folder} is not ready to be published: " + "; ".join(publication.problems))
    api = HfApi(token=token)
    repo_id = api.create_repo(publication.repo_id, private=private, exist_ok=True).repo_id
    if revision != "main":
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    # A commit of somebody else in between makes this one fail, so that only what was listed is removed.
    parent = api.repo_info(repo_id, revision=revision).sha
    stale = sorted(_remote_files(api, repo_id, parent or revision) - publication.files.keys() - {_KEPT})
    operations = [
        *(CommitOperationDelete(name, is_folder=False) for name in stale),
        *(CommitOperationAdd(name, content) for name, content in publication.files.items()),
    ]
    message = f"Upload {read_inputs(publication.folder)['name']}"
    commit = api.create_commit(
        repo_id, operations, commit_message=message, revision=revision, parent_commit=parent
    ).oid
    wrong = compare(publication, repo_id, commit, token)
    if wrong:
        raise ValueError(
            f"{repo_id} at {commit} differs from {publication.folder} in {', '.join(wrong)}; upload again"
        )
    return repo_id, commit


def compare(publication: Publication, repo_id: str, revision: str, token: str | None = None) -> list[str]:
    """Downloads a revision to an empty cache and compares names and hashes.

    Returns:
        Names of files that differ, or that only one of the two has.
    """
    api = HfApi(token=token)
    there = set(api.list_repo_files(repo_id, revision=revision))
    # The Hub adds this one to repositories that have none.
    wrong = (there ^ publication.files.keys()) - ({_KEPT} - publication.files.keys())
    with tempfile.TemporaryDirectory() as cache:
        for name in publication.files.keys() & there:
            path = Path(api.hf_hub_download(repo_id, name, revision=revision, cache_dir=cache))
            if _sha256(path) != _sha256(publication.files[name]):
                wrong.add(name)
            path.resolve().unlink()
    return sorted(wrong)


def _sha256(content: Path | bytes) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
