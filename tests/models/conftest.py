"""A hub that lives in a thread: the few endpoints that huggingface_hub needs to make, fill and read a repository."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OWNERS_TOKEN = "hf_owner"


@dataclass
class Hub:
    """Repositories by name, each with its files by path; what was asked of it is kept."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    down: bool = False
    url: str = ""
    token: str = OWNERS_TOKEN

    def sha(self, name: str) -> str:
        """Of the last commit."""
        state = sorted((path, hashlib.sha1(blob).hexdigest()) for path, blob in self.repositories[name].items())
        return hashlib.sha1(repr(state).encode()).hexdigest()


class HubHandler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.start()
        if self.hub.down:
            return self.refuse(500, "", "out of order")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self.describe("/".join(parts[2:4]), parts[4:])
        return self.give("/".join(parts[:2]), parts[3], "/".join(parts[4:]))  # owner/name/resolve/revision/file

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.start()
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {OWNERS_TOKEN}":
            return self.refuse(401, "", "Invalid username or password.")
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        _, _, owner, name, action, *_ = path.strip("/").split("/")
        if action == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        return self.commit(f"{owner}/{name}", body)

    def create(self, asked: dict[str, Any]) -> None:
        owner = asked.get("organization") or "somebody"
        if owner != "somebody":
            return self.refuse(403, "", f"You don't have the rights to create a model under the namespace {owner!r}")
        name = f"{owner}/{asked['name']}"
        self.hub.repositories.setdefault(name, {})
        self.hub.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
        return self.answer({"url": f"{self.hub.url}/{name}", "name": name})

    def commit(self, name: str, body: bytes) -> None:
        for line in filter(None, body.split(b"\n")):
            item = json.loads(line)
            if item["key"] == "file":
                content = base64.b64decode(item["value"]["content"])
                self.hub.repositories[name][item["value"]["path"]] = content
        sha = self.hub.sha(name)
        self.answer({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    def describe(self, name: str, rest: list[str]) -> None:
        if name not in self.hub.repositories:
            return self.refuse(401, "RepoNotFound", "Repository not found")
        files, sha = self.hub.repositories[name], self.hub.sha(name)
        if rest and rest[-1] not in {"main", sha}:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        if rest and rest[0] == "tree":
            tree = [
                {"type": "file", "path": path, "size": len(blob), "oid": hashlib.sha1(blob).hexdigest()}
                for path, blob in files.items()
            ]
            return self.answer(tree)
        siblings = [{"rfilename": path} for path in files]
        return self.answer(
            {"id": name, "modelId": name, "sha": sha, "private": False, "tags": [], "siblings": siblings}
        )

    def give(self, name: str, revision: str, file: str) -> None:
        if name not in self.hub.repositories:
            return self.refuse(401, "RepoNotFound", "Repository not found")
        if name in self.hub.gated and self.headers.get("Authorization") != f"Bearer {OWNERS_TOKEN}":
            return self.refuse(403, "GatedRepo", f"Access to model {name} is restricted")
        blob = self.hub.repositories[name].get(file)
        if blob is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        return self.send(
            200, blob, {"ETag": f'"{hashlib.sha1(blob).hexdigest()}"', "X-Repo-Commit": self.hub.sha(name)}
        )

    def start(self) -> str:
        self.hub.asked.append(f"{self.command} {self.path}")
        return urlsplit(self.path).path

    def answer(self, content: Any) -> None:
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str, message: str) -> None:
        self.send(status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture
def ask_hub_at(monkeypatch, tmp_path) -> Callable[[str], None]:
    """Has huggingface_hub ask there, with nobody's token, and keep copies in a folder of this test."""

    def ask(url: str) -> None:
        constants = "huggingface_hub.constants"
        address = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(f"{constants}.ENDPOINT", url)
        monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(f"{constants}.HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True, raising=False)  # a store of large files
        for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(variable, raising=False)

    return ask


@pytest.fixture
def hub(ask_hub_at) -> Iterator[Hub]:
    """A running one, which huggingface_hub asks."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": hub}))
    server.daemon_threads = True  # connections that are kept open
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    ask_hub_at(hub.url)
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()
