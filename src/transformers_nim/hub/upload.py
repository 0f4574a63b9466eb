# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Send a publication to the Hub, and look at what has arrived."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .model_card import read_inputs
from .publication import KEPT, Publication


# `HTTPError` of the HTTP client of huggingface_hub, which has not been the same package in all its versions.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
# Seconds to wait for an answer of the Hub.
_TIMEOUT = 30.0


class UnreachableHubError(ConnectionError):
    """The Hub cannot be reached, or must not be, as HF_HUB_OFFLINE is set."""


@contextmanager
def _in_words(api: HfApi, repo_id: str) -> Iterator[None]:
    """Turn errors of the Hub and of the way there into sentences that say what to do."""
    try:
        yield
    except LocalTokenNotFoundError:
        raise ConnectionError("there is no token of the Hub: run `hf auth login`, or pass one as --token") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = f"the Hub answered {status} ({error.server_message or 'without a reason'}) for {repo_id}"
        advice = {
            401: "the token is missing or not valid; run `hf auth login`, or pass a valid one as --token",
            403: "the token may not write there; pass one that may as --token, or choose another repository",
            404: "there is no such repository, or the token may not see it; check the name and --token",
            412: "somebody has changed the repository meanwhile; start again",
        }
        raise ConnectionError(f"{said}: {advice.get(status, 'wait a little and start again')}") from error
    # Offline mode is a ConnectionError.
    except (_HTTP_ERROR, LocalEntryNotFoundError, ConnectionError) as error:
        raise UnreachableHubError(
            f"the Hub cannot be reached at {api.endpoint} ({type(error).__name__}): check the network, and HF_ENDPOINT"
            " and HF_HUB_OFFLINE if they are set"
        ) from error


def stale_files(publication: Publication, revision: str = "main", token: str | None = None) -> list[str]:
    """List the files on the Hub that [`upload`] would remove, because the publication has none of their names.

    Args:
        publication: What is to be uploaded.
        revision: Branch; where there is none yet, the new one begins with the files of `main`.
        token: Of the Hub; by default the one of `hf auth login`.

    Returns:
        Their names; none where there is no repository yet.

    Raises:
        UnreachableHubError: The Hub cannot be reached. This is found out without waiting for another try.
        ConnectionError: The Hub does not accept the token.
    """
    api = HfApi(token=token)
    repo_id = publication.repo_id
    with _in_words(api, repo_id):
        if "/" not in repo_id:
            # `create_repo` fills in the owner of the token; reading would find somebody else's.
            repo_id = f"{api.whoami()['name']}/{repo_id}"
        try:
            return sorted(_remote_files(api, repo_id, revision) - publication.files.keys() - {KEPT})
        except RepositoryNotFoundError:
            return []


def _remote_files(api: HfApi, repo_id: str, revision: str) -> set[str]:
    # In one request, which is not repeated. `list_repo_files` tries again and again where there is no network.
    try:
        info = api.model_info(repo_id, revision=revision, timeout=_TIMEOUT)
    except RevisionNotFoundError:
        info = api.model_info(repo_id, timeout=_TIMEOUT)
    return {file.rfilename for file in info.siblings or []}


def upload(
    publication: Publication, private: bool = False, revision: str = "main", token: str | None = None
) -> tuple[str, str]:
    """Make a branch exactly the publication, in one commit; download everything again and compare.

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
        ValueError: There are problems.
        ConnectionError: The Hub cannot be reached or does not accept the token, or what has arrived is something else.
    """
    if publication.problems:
        raise ValueError(f"{publication.folder} is not ready to be published: " + "; ".join(publication.problems))
    api = HfApi(token=token)
    with _in_words(api, publication.repo_id):
        repo_id = api.create_repo(publication.repo_id, private=private, exist_ok=True).repo_id
        if revision != "main":
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        # A commit of somebody else in between makes this one fail, so that only what was listed is removed.
        parent = api.repo_info(repo_id, revision=revision).sha
        stale = sorted(_remote_files(api, repo_id, parent or revision) - publication.files.keys() - {KEPT})
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationDelete(name, is_folder=False) for name in stale
        ]
        operations += [CommitOperationAdd(name, content) for name, content in publication.files.items()]
        message = f"Upload {read_inputs(publication.folder)['name']}"
        commit = api.create_commit(
            repo_id, operations, commit_message=message, revision=revision, parent_commit=parent
        ).oid
        wrong = compare(publication, repo_id, commit, token)
    if wrong:
        raise ConnectionError(
            f"{repo_id} at {commit} differs from {publication.folder} in {', '.join(wrong)}; upload again"
        )
    return repo_id, commit


def compare(publication: Publication, repo_id: str, revision: str, token: str | None = None) -> list[str]:
    """Download a revision to an empty cache and compare names and hashes.

    Returns:
        Names of files that differ, or that only one of the two has.
    """
    api = HfApi(token=token)
    there = set(api.list_repo_files(repo_id, revision=revision))
    # The Hub adds this one to repositories that have none.
    wrong = (there ^ publication.files.keys()) - ({KEPT} - publication.files.keys())
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
