"""Uploads by the real client to a small hub on loopback."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub.constants
import pytest

from train.errors import ExportError
from train.publish.hub import check_push, push

# The client itself sends bytes in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TOKEN = "hf_of_a_test"


class Hub(ThreadingHTTPServer):
    """A hub that keeps the files of its repositories and whether they are private."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.private: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.full = False

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        repo = path.removeprefix("/api/models/")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send({"error": "Invalid token"}, 401)
        elif path == "/api/whoami-v2":
            self.send({"type": "user", "name": "owner"})
        elif repo in self.server.private:
            self.send({"id": repo, "private": self.server.private[repo]})
        else:
            self.send({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def do_PUT(self) -> None:
        self.server.blobs[self.path.rpartition("/")[2]] = self.body()
        self.send({})

    def do_POST(self) -> None:
        path, body = self.path.partition("?")[0], self.body()
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            self.server.private.setdefault(repo, asked["visibility"] == "private")
            self.send({"url": f"{self.server.endpoint}/{repo}"})
        elif path == "/api/validate-yaml":
            self.send({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            self.send({"files": [self.place(file) for file in json.loads(body)["files"]]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [self.upload(wanted) for wanted in json.loads(body)["objects"]]
            self.send({"transfer": "basic", "objects": objects})
        elif "/commit/" in path and self.server.full:
            self.send({"error": "quota exceeded"}, 403)
        else:
            self.commit([json.loads(line) for line in body.splitlines()])

    def place(self, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.server.endpoint}/blobs/{wanted['oid']}"
        return {**wanted, "actions": {"upload": {"href": href}}}

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.blobs[value["oid"]]
            elif line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
        url = f"{self.server.endpoint}/owner/small/commit/{'c' * 40}"
        self.send({"commitOid": "c" * 40, "commitUrl": url, "success": True})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "README.md").write_text("---\ntags: [llamahome]\n---\n# small\n")
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    return folder


def test_upload_is_private_and_whole(hub: Hub, folder: Path) -> None:
    api = check_push("owner/small", public=False)
    url = push(api, "owner/small", folder, public=False)
    assert url.endswith("/owner/small")
    assert hub.private == {"owner/small": True}
    assert hub.files == {file.name: file.read_bytes() for file in folder.iterdir()}


def test_public_on_demand_and_never_by_surprise(hub: Hub, folder: Path) -> None:
    push(check_push("owner/small", public=True), "owner/small", folder, public=True)
    assert hub.private == {"owner/small": False}
    with pytest.raises(ExportError, match="that repository is there and public; give --public"):
        check_push("owner/small", public=False)
    check_push("owner/small", public=True)


def test_a_refusal_says_where_the_export_is(hub: Hub, folder: Path) -> None:
    api = check_push("owner/small", public=False)
    hub.full = True
    with pytest.raises(ExportError, match=rf"answered 403.*stays in {re.escape(str(folder))}"):
        push(api, "owner/small", folder, public=False)


def test_tokens(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ExportError, match=r"answered 401.*set HF_TOKEN to a token") as caught:
        check_push("owner/small", public=False)
    assert "hf_wrong" not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ExportError, match="set HF_TOKEN in the environment"):
        check_push("owner/small", public=False)


def test_no_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ExportError, match="the hub cannot be reached"):
        check_push("owner/small", public=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match="HF_HUB_OFFLINE is set; unset it"):
        check_push("owner/small", public=False)
