"""A stand-in for the Hugging Face Hub: the HTTP interface for uploads and downloads of models."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

yaml: Any = importlib.import_module("yaml")  # has no types

OWNER, STRANGER = "hf_owner", "hf_stranger"  # tokens with all permissions, and with none
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    """A repository: its states, oldest first."""

    private: bool = False
    gated: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, changes: dict[str, bytes], *, remove: str = "") -> str:
        """Add a state that differs from the last by some files; return its name."""
        files = {**(self.commits[-1][1] if self.commits else {}), **changes}
        files.pop(remove, None)
        tree = "".join(f"{name} {_blob(content)}\n" for name, content in files.items())
        oid = hashlib.sha1(f"{len(self.commits)}\n{tree}".encode()).hexdigest()
        self.commits.append((oid, files))
        return oid

    def find(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return a state by branch, tag or name."""
        if revision == "main":
            return self.commits[-1]
        name = self.tags.get(revision, revision)
        return next((state for state in self.commits if state[0] == name), None)


class Hub(ThreadingHTTPServer):
    """A server of repositories on a free port; every request is recorded."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.cdn = f"http://localhost:{self.server_port}/cdn"  # another host, as the hub's is
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # large files, by sha256
        self.seen: list[str] = []
        self.broken = 0  # answer everything with this status, if any

    def make(self, name: str, *, private: bool = False, gated: bool = False) -> Repository:
        """Make a repository with one commit, as the Hub does."""
        self.repositories[name] = repository = Repository(private, gated)
        repository.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs\n"})
        return repository

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: clients close connections in these tests."""


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """Run a hub."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def connect(hub: Hub, monkeypatch: pytest.MonkeyPatch, folder: Path, token: str | None) -> None:
    """Make huggingface_hub, which has read its variables already, use a hub."""
    for name in ("ISANET_ZOO_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # plain HTTP
    if token:
        monkeypatch.setenv("HF_TOKEN", token)


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.seen.append(f"{self.command} {path}")
        try:
            if self.server.broken:
                raise _RefusedError(self.server.broken)
            for pattern, act in ROUTES.items():
                if match := re.fullmatch(pattern, f"{self.command} {path}"):
                    act(self, **match.groupdict())
                    return
            raise _RefusedError(404, "", f"no such route: {self.command} {path}")
        except _RefusedError as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": str(refused)}
            self._send(refused.status, b"{}", {k: v for k, v in headers.items() if v})

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    @property
    def _token(self) -> str:
        return (self.headers["Authorization"] or "").removeprefix("Bearer ")

    def _repository(self, name: str) -> Repository:
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and self._token != OWNER):
            message = "Repository not found" if self._token else "Invalid username or password."
            raise _RefusedError(404 if self._token else 401, "RepoNotFound", message)
        return repository

    def _may_write(self) -> None:
        if self._token != OWNER:
            message = "You don't have the required permissions" if self._token else "Unauthorized"
            raise _RefusedError(403 if self._token else 401, "", message)

    def _state(self, repository: Repository, revision: str) -> tuple[str, dict[str, bytes]]:
        if (state := repository.find(revision)) is None:
            raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return state

    def create(self) -> None:
        self._may_write()
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.server.repositories:
            self._send(409, json.dumps({"url": f"{self.server.url}/{name}"}).encode())
            return
        self.server.make(name, private=wanted.get("private", wanted.get("visibility") == "private"))
        self._send_json({"url": f"{self.server.url}/{name}"})

    def info(self, repo: str, revision: str = "main") -> None:
        repository = self._repository(repo)
        oid, files = self._state(repository, revision)
        siblings = [{"rfilename": name} for name in files]
        private = {"private": repository.private, "gated": repository.gated}
        self._send_json({"id": repo, "sha": oid, "siblings": siblings, **private})

    def tree(self, repo: str, revision: str) -> None:
        _, files = self._state(self._repository(repo), revision)
        rows: list[dict[str, Any]] = []
        for name, content in files.items():
            row = {"type": "file", "path": name, "size": len(content), "oid": _blob(content)}
            if name.endswith(".safetensors"):
                oid = hashlib.sha256(content).hexdigest()
                row["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
            rows.append(row)
        self._send_json(rows)

    def preupload(self, repo: str, revision: str) -> None:
        _, files = self._state(self._repository(repo), revision)
        self._may_write()
        answers = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": _oid(file["path"], files[file["path"]]) if file["path"] in files else None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._send_json({"files": answers})

    def batch(self, repo: str) -> None:
        self._repository(repo)
        self._may_write()
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.server.objects:
                item["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}
        self._send_json({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _RefusedError(400, "", "the object has another hash than its name")
        self.server.objects[oid] = self.body
        self._send(200)

    def commit(self, repo: str, revision: str) -> None:
        repository = self._repository(repo)
        self._may_write()
        changes: dict[str, bytes] = {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                changes[value["path"]] = self.server.objects[value["oid"]]
        oid = repository.commit(changes)
        url = f"{self.server.url}/{repo}/commit/{oid}"
        self._send_json({"commitUrl": url, "commitOid": oid})

    def validate(self) -> None:
        text = json.loads(self.body)["content"]
        metadata = yaml.safe_load(text.split("---\n")[1])
        errors = [
            {"message": f'"{key}" must be a string'}
            for key in ("library_name", "pipeline_tag", "license")
            if not isinstance(metadata.get(key, ""), str)
        ]
        if metadata.get("license") == "other" and "license_name" not in metadata:
            errors.append({"message": '"license_name" is required'})
        answer = json.dumps({"errors": errors, "warnings": []}).encode()
        self._send(400 if errors else 200, answer)

    def resolve(self, repo: str, revision: str, name: str) -> None:
        repository = self._repository(repo)
        oid, files = self._state(repository, revision)
        if repository.gated and self._token != OWNER:
            raise _RefusedError(403 if self._token else 401, "GatedRepo", "Access is restricted.")
        headers = {"X-Repo-Commit": oid}
        if name not in files:
            raise _RefusedError(404, "EntryNotFound", "Entry not found")
        content = files[name]
        if not name.endswith(".safetensors"):
            self._send(200, content, headers | {"ETag": f'"{_blob(content)}"'})
            return
        sha256 = hashlib.sha256(content).hexdigest()
        self.server.objects.setdefault(sha256, content)
        headers["X-Linked-Size"], headers["X-Linked-Etag"] = str(len(content)), f'"{sha256}"'
        self._send(302, b"", headers | {"Location": f"{self.server.cdn}/{sha256}"})

    def serve(self, oid: str) -> None:
        if self._token:
            raise _RefusedError(400, "", "a token was sent to another host")
        self._send(200, self.server.objects[oid], {"ETag": f'"{oid}"'})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def _blob(content: bytes) -> str:
    """Return git's hash of a file."""
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


def _oid(path: str, content: bytes) -> str:
    """Return the Hub's hash of a file."""
    large = path.endswith(".safetensors")
    return hashlib.sha256(content).hexdigest() if large else _blob(content)


ROUTES: dict[str, Any] = {
    "POST /api/repos/create": _Handler.create,
    "POST /api/validate-yaml": _Handler.validate,
    f"GET /api/models/{REPO}": _Handler.info,
    f"GET /api/models/{REPO}/revision/(?P<revision>.+)": _Handler.info,
    f"GET /api/models/{REPO}/tree/(?P<revision>.+)": _Handler.tree,
    f"POST /api/models/{REPO}/preupload/(?P<revision>.+)": _Handler.preupload,
    f"POST /api/models/{REPO}/commit/(?P<revision>.+)": _Handler.commit,
    rf"POST /{REPO}\.git/info/lfs/objects/batch": _Handler.batch,
    "PUT /lfs/(?P<oid>.+)": _Handler.store,
    f"(GET|HEAD) /{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)": _Handler.resolve,
    "(GET|HEAD) /cdn/(?P<oid>.+)": _Handler.serve,
}
