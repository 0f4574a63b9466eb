# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""A small Hugging Face Hub on 127.0.0.1, so that tests push and load over HTTP as users do.

It speaks the part of the protocol that `huggingface_hub`, `transformers` and `datasets` need. Everything is in memory.
A repository has branches, no tags and no pull requests; a revision is a branch or a commit's full sha. All is public,
and the one token writes everywhere.

The client takes the address from its environment when it is imported, so it runs in a process of its own:

    with LoopbackHub() as hub:
        subprocess.run([sys.executable, "push.py"], env=hub.environment(tmp_path), check=True)
        assert "config.json" in hub.files("nim/nim-vit-tiny")

`huggingface_hub` alone can also be led to it in this process, by `hub.lead_here(monkeypatch, tmp_path)`.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import constants


USER = "nim"
# What the .gitattributes of the public Hub send to LFS, as far as tests meet it.
LFS_SUFFIXES = {".arrow", ".bin", ".onnx", ".parquet", ".pt", ".safetensors"}


class HubError(Exception):
    """An answer that is an error; `code` is what `huggingface_hub` chooses its exception by."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


def is_lfs(path: str) -> bool:
    return PurePosixPath(path).suffix in LFS_SUFFIXES


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class StoredFile(NamedTuple):
    """What a commit knows of a file. The content is in the storage, under `etag`."""

    size: int
    oid: str
    sha256: str | None = None  # of LFS files, whose `oid` is that of git's pointer to them

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    def entry(self, path: str) -> dict[str, Any]:
        lfs = {"lfs": {"oid": self.sha256, "size": self.size, "pointerSize": 134}} if self.sha256 else {}
        return {"type": "file", "path": path, "oid": self.oid, "size": self.size, **lfs}


@dataclass(frozen=True)
class Commit:
    sha: str
    files: dict[str, StoredFile]

    def entries(self) -> list[dict[str, Any]]:
        """All folders and files, as listings have them."""
        parents = {str(parent) for path in self.files for parent in PurePosixPath(path).parents} - {"."}
        folders = [{"type": "directory", "path": path, "oid": git_oid(path.encode())} for path in sorted(parents)]
        return folders + [file.entry(path) for path, file in sorted(self.files.items())]


@dataclass
class Repo:
    kind: str  # "models", "datasets" or "spaces"
    name: str
    history: list[Commit] = field(default_factory=list)
    branches: dict[str, Commit] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit({})

    @property
    def head(self) -> Commit:
        return self.branches["main"]

    @property
    def web_path(self) -> str:
        return f"/{self.name}" if self.kind == "models" else f"/{self.kind}/{self.name}"

    def commit(self, files: dict[str, StoredFile], branch: str = "main") -> Commit:
        # With its parent in the sha, going back to old files is a commit of its own.
        parent = self.branches[branch].sha if self.branches else self.web_path
        commit = Commit(git_oid(repr((parent, sorted(files.items()))).encode()), files)
        self.history.append(commit)
        self.branches[branch] = commit
        return commit

    def at(self, revision: str) -> Commit:
        if revision in self.branches:
            return self.branches[revision]
        for commit in self.history:
            if commit.sha == revision:
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


@dataclass
class Storage:
    """Repositories, and the contents of all their files by hash."""

    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)

    def repo(self, kind: str, name: str, create: bool = False) -> Repo:
        if create:
            return self.repos.setdefault((kind, name), Repo(kind, name))
        if (kind, name) not in self.repos:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return self.repos[kind, name]

    def store(self, content: bytes, lfs: bool = False) -> StoredFile:
        key = hashlib.sha256(content).hexdigest() if lfs else git_oid(content)
        self.contents[key] = content
        return self.lfs_file(key, len(content)) if lfs else StoredFile(len(content), key)

    def lfs_file(self, sha256: str, size: int) -> StoredFile:
        if sha256 not in self.contents:
            raise HubError(400, f"LFS object {sha256} was never uploaded")
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return StoredFile(size, git_oid(pointer.encode()), sha256)


class Response(NamedTuple):
    body: Any  # bytes, or something to send as JSON
    status: int = 200
    headers: Mapping[str, str] = {}


class Connection(BaseHTTPRequestHandler):
    """One connection of a client. The methods named in `ROUTES` answer with a `Response`, or just its body."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, hub: "LoopbackHub", *args: Any):
        self.hub, self.storage = hub, hub.storage
        super().__init__(*args)

    def log_message(self, *args: Any) -> None:
        """Nothing on stderr: the hub keeps a list of requests."""

    def respond(self) -> None:
        self.url = urlsplit(self.path)
        self.root = f"http://{self.headers['Host']}"
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.hub.lock:
            try:
                answer = self.answer()
                response = answer if isinstance(answer, Response) else Response(answer)
            except HubError as error:
                response = Response({"error": str(error)}, error.status, error.headers)
            # Before the client has its answer: whoever waited for the client finds the request here.
            self.hub.requests.append((self.command, self.url.path, response.status))
        is_bytes = isinstance(response.body, bytes)
        body = response.body if is_bytes else json.dumps(response.body).encode()
        self.send_response(response.status)
        self.send_header("Content-Type", "application/octet-stream" if is_bytes else "application/json")
        self.send_header("Content-Length", str(len(body)))
        for header in response.headers.items():
            self.send_header(*header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = respond

    def answer(self) -> Any:
        credentials = self.headers.get("Authorization")
        if credentials not in (None, f"Bearer {self.hub.token}"):
            raise HubError(401, "Invalid credentials in Authorization header")
        for method, needs_token, pattern, route in ROUTES:
            match = re.fullmatch(pattern, self.url.path)
            if match and method == self.command.replace("HEAD", "GET"):
                if needs_token and credentials is None:
                    raise HubError(401, "Invalid username or password.")
                self.groups = {name: unquote(text) for name, text in match.groupdict().items() if text is not None}
                return route(self)
        raise HubError(404, f"the loopback hub has no {self.command} {self.url.path}")

    @property
    def repo(self) -> Repo:
        return self.storage.repo(self.groups.get("kind", "models"), self.groups["name"])

    @property
    def commit(self) -> Commit:
        return self.repo.at(self.groups.get("revision", "main"))

    def whoami(self) -> Any:
        return {"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {"type": "access_token"}}

    def validate_card(self) -> Any:
        return {"errors": [], "warnings": []}

    def create_repo(self) -> Any:
        wanted = json.loads(self.body)
        kind, name = wanted.get("type", "model") + "s", f"{wanted.get('organization') or USER}/{wanted['name']}"
        exists = (kind, name) in self.storage.repos
        answer = {"name": name, "url": self.root + self.storage.repo(kind, name, create=True).web_path}
        return Response({**answer, "error": "You already created this repo"}, 409) if exists else answer

    def create_branch(self) -> Any:
        repo, branch = self.repo, self.groups["revision"]
        if branch in repo.branches:
            raise HubError(409, f"Reference already exists: {branch}")
        repo.branches[branch] = repo.head
        return {}

    def repo_info(self) -> Any:
        name, commit = self.repo.name, self.commit
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        info = {"id": name, "author": name.split("/")[0], "sha": commit.sha, "private": False, "siblings": siblings}
        card = self.storage.contents[commit.files["README.md"].etag] if "README.md" in commit.files else b""
        # `pipeline(model=...)` chooses the task by what the YAML at the card's head says.
        head = card.decode(errors="replace").split("\n---")[0]
        return info | dict(re.findall(r"^(pipeline_tag|library_name): (\S+)$", head, re.MULTILINE))

    def tree(self) -> Any:
        folder = self.groups.get("path", "").strip("/")
        inside = [entry for entry in self.commit.entries() if entry["path"].startswith(folder and folder + "/")]
        if folder and not inside:
            raise HubError(404, f"no folder {folder}", "EntryNotFound")
        if parse_qs(self.url.query).get("recursive", ["false"])[0].lower() in ("true", "1"):
            return inside
        return [entry for entry in inside if str(PurePosixPath(entry["path"]).parent) == (folder or ".")]

    def paths_info(self) -> Any:
        wanted = parse_qs(self.body.decode()).get("paths", [])
        return [entry for entry in self.commit.entries() if entry["path"] in wanted]

    def preupload(self) -> Any:
        # The client leaves out what has the hash that it is told.
        known = {path: file.etag for path, file in self.commit.files.items()}
        plan = [
            {"path": p, "uploadMode": "lfs" if is_lfs(p) else "regular", "shouldIgnore": False, "oid": known.get(p)}
            for p in (file["path"] for file in json.loads(self.body)["files"])
        ]
        return {"files": plan}

    def lfs_batch(self) -> Any:
        objects = json.loads(self.body)["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.storage.contents:
                wanted["actions"] = {"upload": {"href": f"{self.root}/lfs-upload/{wanted['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def lfs_upload(self) -> Any:
        if self.groups["oid"] != hashlib.sha256(self.body).hexdigest():
            raise HubError(400, "the content has another sha256")
        self.storage.store(self.body, lfs=True)
        return {}

    def create_commit(self) -> Any:
        repo, branch = self.repo, self.groups["revision"]
        if branch not in repo.branches:
            raise HubError(400, f"{branch} is no branch")
        head = repo.branches[branch]
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        if header["value"].get("parentCommit", head.sha) != head.sha:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for operation in operations:
            self.apply(operation["key"], operation["value"], files)
        commit = repo.commit(files, branch)
        return {"commitOid": commit.sha, "commitUrl": f"{self.root}{repo.web_path}/commit/{commit.sha}"}

    def apply(self, operation: str, value: dict[str, Any], files: dict[str, StoredFile]) -> None:
        path = value["path"]
        match operation:
            case "file":
                files[path] = self.storage.store(base64.b64decode(value["content"]))
            case "lfsFile":
                files[path] = self.storage.lfs_file(value["oid"], value["size"])
            case "deletedFile":
                files.pop(path, None)
            case "deletedFolder":
                for inside in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
                    del files[inside]
            case _:
                raise HubError(400, f"unknown operation {operation!r}")

    def resolve(self) -> Response:
        commit = self.commit
        headers = {"X-Repo-Commit": commit.sha}
        if self.groups["path"] not in commit.files:
            # With the commit, because clients remember what a commit does not have.
            raise HubError(404, "Entry not found", "EntryNotFound", **headers)
        file = commit.files[self.groups["path"]]
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.sha256:
            headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        content = self.storage.contents[file.etag]
        if self.groups["path"] == self.hub.corrupt:
            content = bytes(byte ^ 1 for byte in content)
        return self.part_of(content, headers)

    def part_of(self, content: bytes, headers: dict[str, str]) -> Response:
        """What a header such as `Range: bytes=100-199`, `bytes=100-` or `bytes=-100` asks for, or all of it."""
        bounds = re.fullmatch(r"bytes=(?!-$)(\d*)-(\d*)", self.headers.get("Range", ""))
        if bounds is None:
            return Response(content, 200, headers)
        first, last = bounds.groups()
        start = int(first) if first else max(len(content) - int(last), 0)
        part = content[start : int(last) + 1] if first and last else content[start:]
        if not part:
            raise HubError(416, "Requested range not satisfiable", **{"Content-Range": f"bytes */{len(content)}"})
        place = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        return Response(part, 206, {**headers, "Content-Range": place})


NAME = r"(?P<name>[^/]+(?:/[^/]+)?)"
API = rf"/api/(?P<kind>models|datasets|spaces)/{NAME}"
WEB = rf"/(?:(?P<kind>datasets|spaces)/)?{NAME}"
REVISION = r"(?P<revision>[^/]+)"

# Method (HEAD is answered as GET), whether it needs the token, path, answer.
ROUTES = (
    ("GET", True, "/api/whoami-v2", Connection.whoami),
    ("POST", False, "/api/validate-yaml", Connection.validate_card),
    ("POST", True, "/api/repos/create", Connection.create_repo),
    ("GET", False, rf"{API}(?:/revision/{REVISION})?", Connection.repo_info),
    ("GET", False, rf"{API}/tree/{REVISION}(?:/(?P<path>.*))?", Connection.tree),
    ("POST", True, rf"{API}/branch/{REVISION}", Connection.create_branch),
    ("POST", False, rf"{API}/paths-info/{REVISION}", Connection.paths_info),
    ("POST", True, rf"{API}/preupload/{REVISION}", Connection.preupload),
    ("POST", True, rf"{WEB}\.git/info/lfs/objects/batch", Connection.lfs_batch),
    # Clients send no token to upload addresses, and what they upload shows nowhere before its commit.
    ("PUT", False, r"/lfs-upload/(?P<oid>\w+)", Connection.lfs_upload),
    ("POST", True, rf"{API}/commit/{REVISION}", Connection.create_commit),
    ("GET", False, rf"{WEB}/resolve/{REVISION}/(?P<path>.+)", Connection.resolve),
)


class LoopbackHub:
    """A Hub that lives as long as a `with` block.

    Attributes:
        endpoint: Its address, for `HF_ENDPOINT`.
        token: The token that may write.
        requests: Method, path (as it was sent, without query) and status of every request so far.
        corrupt: Path of a file that is sent with other bytes, as many as it has.
    """

    token = "hf_loopback"
    corrupt: str | None = None

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, int]] = []
        self.storage = Storage()
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Connection, self))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        # The interval is how long leaving the block may take.
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, repo_id: str, files: Mapping[str, bytes], repo_type: str = "model") -> str:
        """Commits files on top of those that are there, without HTTP; makes the repository where there is none.

        Returns:
            The sha of the commit."""
        with self.lock:
            repo = self.storage.repo(f"{repo_type}s", repo_id, create=True)
            new = {path: self.storage.store(content, is_lfs(path)) for path, content in files.items()}
            return repo.commit({**repo.head.files, **new}).sha

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
        """The contents of a branch or commit, by path."""
        with self.lock:
            files = self.storage.repo(f"{repo_type}s", repo_id).at(revision).files
            return {path: self.storage.contents[file.etag] for path, file in files.items()}

    def truncate(self, repo_id: str, path: str, repo_type: str = "model") -> None:
        """Loses the second half of a stored LFS file, whose size and hash are announced as before."""
        with self.lock:
            file = self.storage.repo(f"{repo_type}s", repo_id).head.files[path]
            self.storage.contents[file.etag] = self.storage.contents[file.etag][: file.size // 2]

    def lead_here(self, monkeypatch: Any, home: Path, endpoint: str = "", token: str | None = None) -> None:
        """Makes `huggingface_hub` use this hub (or that at another address) until the end of a test."""
        for name in ("HF_OIDC_RESOURCE", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_TOKEN", self.token if token is None else token)
        endpoint = endpoint or self.endpoint
        settings = {
            "ENDPOINT": endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)

    def environment(self, home: Path) -> dict[str, str]:
        """The environment of a process that uses this hub: caches below `home`, and no settings of the user."""
        theirs = ("HF_", "HUGGING_FACE_", "HUGGINGFACE_", "TRANSFORMERS_")
        return {name: value for name, value in os.environ.items() if not name.startswith(theirs)} | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home / "huggingface"),
            "HF_TOKEN": self.token,
            # Where hf-xet is installed, LFS files would take another protocol.
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
