"""A stand-in for the Hub on this machine: the endpoints that the installed client calls, and their faults.

Recorded by running the client against a server that logs: `GET api/models/R/revision/main?blobs=true` and
`.../tree/C` (listings), `HEAD` and `GET R/resolve/C/FILE` with `Range` (files), `GET api/whoami-v2`,
`POST api/repos/create`, `POST api/models/R/preupload/main`, `POST R.git/info/lfs/objects/batch` with a `PUT`
for each large file, `POST api/validate-yaml` for a card, `POST api/models/R/commit/main`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN, READ_ONLY, WRONG = "hf_right", "hf_reader", "hf_wrong"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LARGE = (".safetensors", ".bin", ".ckpt")
_REPO = r"(?:(datasets|spaces)/)?(\w[\w.-]*/\w[\w.-]*)"
_LISTING = re.compile(r"/api/(models|datasets|spaces)/(\w[\w.-]*/\w[\w.-]*)(?:/revision/([^/]+))?")
_TREE = re.compile(r"/api/(models|datasets|spaces)/(\w[\w.-]*/\w[\w.-]*)/tree/([^/]+)")
_FILE = re.compile(rf"/{_REPO}/resolve/([^/]+)/(.+)")
_PREUPLOAD = re.compile(r"/api/(models|datasets|spaces)/(\w[\w.-]*/\w[\w.-]*)/preupload/([^/]+)")
_COMMIT = re.compile(r"/api/(models|datasets|spaces)/(\w[\w.-]*/\w[\w.-]*)/commit/([^/]+)")
_BATCH = re.compile(rf"/{_REPO}\.git/info/lfs/objects/batch")


@dataclass
class Repo:
    """What one repository holds.

    Attributes:
        is_gated: its files are for those who accepted a licence.
        is_private: who has no token is told that it does not exist.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    is_gated: bool = False
    is_private: bool = False


@dataclass
class Hub:
    """The stand-in's content and faults; `log` has each request as `METHOD path`.

    Attributes:
        failures: answers to the next requests whose line contains the key, e.g. {"commit": [503]}.
        cut_after: bytes after which the next download of a file breaks off.
    """

    address: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    failures: dict[str, list[int]] = field(default_factory=dict)
    cut_after: dict[str, int] = field(default_factory=dict)
    uploaded: dict[str, bytes] = field(default_factory=dict)

    def reset(self) -> None:
        """Forget everything."""
        for kept in (self.repos, self.log, self.failures, self.cut_after, self.uploaded):
            kept.clear()

    def asked(self, part: str) -> list[str]:
        """Return the requests with this in their line."""
        return [line for line in self.log if part in line]


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve an empty stand-in for the duration of a `with` block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client take the stand-in for the Hub, with a cache of its own and as nobody."""
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in takes large files by LFS alone


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        line, path = f"{method} {self.path}", unquote(urlsplit(self.path).path)
        if self.headers.get("Range"):
            line += f" {self.headers['Range']}"
        self.hub.log.append(line)
        for part, answers in self.hub.failures.items():
            if part in line and answers:
                self._send(answers.pop(0), b"{}")
                return
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token == WRONG:
            self._send(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif path == "/api/whoami-v2":
            self._whoami(token)
        elif path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.startswith("/lfs/"):
            self.hub.uploaded[path.removeprefix("/lfs/")] = body
            self._send(200, b"")
        elif match := _BATCH.fullmatch(path):
            self._batch(json.loads(body))
        elif match := _PREUPLOAD.fullmatch(path):
            self._preupload(json.loads(body))
        elif match := _COMMIT.fullmatch(path):
            self._commit(match[2], body)
        elif match := _TREE.fullmatch(path):
            self._listing(match[2], match[3], token, is_tree=True)
        elif match := _LISTING.fullmatch(path):
            self._listing(match[2], match[3] or "main", token, is_tree=False)
        elif match := _FILE.fullmatch(path):
            self._file(match[2], match[3], match[4], token, method)
        else:
            self._send(404, b"{}")

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _whoami(self, token: str) -> None:
        if token not in (TOKEN, READ_ONLY):
            self._send(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
            return
        role = "write" if token == TOKEN else "read"
        self._send_json(
            {"type": "user", "name": "me", "orgs": [{"name": "us"}], "auth": {"accessToken": {"role": role}}}
        )

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        is_private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repos.setdefault(repo, Repo(is_private=is_private))
        self._send_json({"url": f"{self.hub.address}/{repo}"})

    def _found(self, repo: str, revision: str, token: str) -> Repo | None:
        found = self.hub.repos.get(repo)
        if found is None or (found.is_private and token not in (TOKEN, READ_ONLY)):
            self._send(404 if token else 401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return None
        if revision not in ("main", COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return None
        return found

    def _listing(self, name: str, revision: str, token: str, *, is_tree: bool) -> None:
        repo = self._found(name, revision, token)
        if repo is None:
            return
        if is_tree:
            self._send_json([{"type": "file", "path": path, **_told(repo, path)} for path in repo.files])
            return
        files = [{"rfilename": path, **_told(repo, path, oid="blobId")} for path in repo.files]
        self._send_json({"id": name, "sha": COMMIT, "siblings": files, "tags": []})

    def _file(self, name: str, revision: str, path: str, token: str, method: str) -> None:
        repo = self._found(name, revision, token)
        if repo is None:
            return
        if repo.is_gated and token not in (TOKEN, READ_ONLY):
            self._send(401, b"{}", {"X-Error-Code": "GatedRepo"})
            return
        if path not in repo.files:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        data = repo.files[path]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(path, data)}"', "Accept-Ranges": "bytes"}
        start, end, status = 0, len(data), 200
        if match := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(match[1]), min(len(data), int(match[2] or len(data) - 1) + 1)
            headers["Content-Range"], status = f"bytes {start}-{end - 1}/{len(data)}", 206
        cut = self.hub.cut_after.pop(path, None) if method == "GET" and end == len(data) else None
        if cut is None:
            self._send(status, data[start:end], headers)
            return
        self.send_response(status)
        for key, value in {"Content-Length": str(end - start), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data[start : start + cut])
        self.close_connection = True

    def _preupload(self, asked: dict[str, Any]) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(_LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in asked["files"]
        ]
        self._send_json({"files": files})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{entry['oid']}", "header": {}}}}
            for entry in asked["objects"]
        ]
        self._send_json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, body: bytes) -> None:
        repo = self.hub.repos.setdefault(name, Repo())
        for entry in map(json.loads, body.splitlines()):
            value = entry["value"]
            if entry["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repo.files[value["path"]] = self.hub.uploaded[value["oid"]]
        address = f"{self.hub.address}/{name}/commit/{COMMIT}"
        self._send_json({"commitUrl": address, "commitOid": COMMIT, "success": True, "pullRequestUrl": None})


def _told(repo: Repo, path: str, oid: str = "oid") -> dict[str, Any]:
    data = repo.files[path]
    known = {"size": len(data), oid: hashlib.sha1(data).hexdigest()}
    if path.endswith(_LARGE):
        sha256 = hashlib.sha256(data).hexdigest()
        known["lfs"] = {"sha256": sha256, "oid": sha256, "size": len(data), "pointerSize": 100}
    return known


def _etag(path: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if path.endswith(_LARGE) else hashlib.sha1(data).hexdigest()
