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
_SECRETS = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_|api_org_)[A-Za-z0-9]{16,}|(?<![A-Za-z0-9])gh[pousr]_[A-Za-z0-9]{30,}"
    r"|(?<![A-Za-z0-9])AKIA[0-9A-Z]{16}(?![A-Za-z0-9])|-----BEGIN [A-Z ]*PRIVATE KEY"
)
# The first name in a path; with a letter, so that "/8/255" is none.
_PART = r"(?=[^\s/]*[^\W\d_])[\w.@+~-]+"
# Where files of people lie. Other folders are told by what stands before them.
_ROOTS = (
    "home|root|Users|tmp|mnt|var|opt|srv|media|data|work|workspace|scratch|content|lustre|Volumes|kaggle|storage|gpfs"
)
_ABSOLUTE = re.compile(
    # In an address, "/" follows a host, a ":" or another "/"; but an address of a file is one of this machine.
    rf"\bfile:/{{1,3}}{_PART}(?:/{_PART})*"
    rf"|(?<![\w/.~-])/(?:{_ROOTS})/[^\s\"'`,;)]+"
    # Neither links within a site, nor closing brackets and placeholders as in "{folder}/a/b", nor what all have.
    r"|(?<![\w/.~)\]}>%*+$<-])(?<!\]\()(?<!href=[\"'])(?<!src=[\"'])"
    rf"/(?!(?:dev|proc|sys|bin|usr/bin|path/to)/){_PART}(?:/[\w.@+~-]+)+"
)
_WINDOWS = re.compile(r"\b[A-Za-z]:\\{1,2}[A-Za-z]\w*")
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
    links: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if _TOOLS & set(path.relative_to(folder).parts) or any(fnmatch(name, p) for p in LOCAL_FILES):
            continue
        # Their targets would be uploaded, or, of folders, nothing.
        if path.is_symlink() and (path.is_dir() or not path.resolve().is_relative_to(folder.resolve())):
            links.append(f"{name} is a link to a folder or out of this one; remove it or copy what it leads to")
        elif path.is_file():
            files[name] = path
    publication = Publication(folder, repo_id, files, links)
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
        problems += _wrong_kind(name)
        if name.endswith(".safetensors"):
            problems += _broken_weights(publication, name, token)
        if Path(name).suffix in _TEXT or Path(name).name in _NAMES | {_KEPT}:
            problems += _private_content(name, publication.read(name), token)
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


def _wrong_kind(name: str) -> list[str]:
    path = Path(name)
    if path.suffix in _UNSAFE:
        return [f"{name}: such files can execute code when they are read; save weights as safetensors"]
    hidden = [part for part in path.parts if part.startswith(".")]
    if name == _KEPT or (path.parts[0] == ".eval_results" and len(hidden) == 1 and path.suffix in _TEXT):
        return []
    if hidden:
        return [f"{name} is hidden, as settings and secrets are; remove it"]
    if path.suffix not in _ALLOWED and path.name not in _NAMES:
        kinds = ", ".join(sorted(_ALLOWED | _NAMES))
        return [f"{name} is of no kind that is published, which are {kinds}; remove it"]
    return []


def _broken_weights(publication: Publication, name: str, token: str | None) -> list[str]:
    try:
        with safe_open(publication.folder / name, framework="pt") as file:
            list(file.keys())
            metadata = file.metadata()
    except (SafetensorError, OSError) as error:
        return [f"{name} cannot be read: {error}"]
    return _private_text(f"{name} (metadata)", "\n".join(map("=".join, sorted((metadata or {}).items()))), token)


def _private_content(name: str, content: bytes, token: str | None) -> list[str]:
    try:
        return _private_text(name, content.decode(), token)
    except UnicodeDecodeError:
        return [f"{name} is no text in UTF-8, as files of its name are; save it as such, or remove it"]


def _private_text(name: str, text: str, token: str | None) -> list[str]:
    problems = []
    known = [secret for secret in (token, get_token()) if secret and secret in text]
    if known or _SECRETS.search(text):
        line = next(n for n, x in enumerate(text.splitlines(), 1) if _SECRETS.search(x) or any(k in x for k in known))
        problems.append(
            f"{name}, line {line}: this looks like a token or a key; remove it, and revoke it if it is real"
        )
    # Escapes as what they stand for, or "\\n/home" would seem to have an "n" before the path. Outside of JSON a
    # backslash is also the one of Windows.
    if name.endswith((".json", ".jsonl")):
        text = re.sub(r"\\(.)", lambda escape: escape[1] if escape[1] in '\\/"' else " ", text)
    found = _WINDOWS.search(text) or _ABSOLUTE.search(re.sub(r"\\[nrt]", " ", text))
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
