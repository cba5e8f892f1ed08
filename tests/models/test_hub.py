"""Downloads by the real client from a small hub on loopback."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi

from llamahome.models import ModelError, ModelManager, ModelNotFoundError
from llamahome.models.hub import hub_folder, hub_id, is_hub_id

COMMIT = "c" * 40
UNWANTED = {"pytorch_model.bin": b"\x80\x04.", "original/params.json": b"{}", "run.py": b"1"}


class Hub(ThreadingHTTPServer):
    """A hub of repositories by id, each a dict of file names and contents."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.requested: list[str] = []
        self.fail_on: str | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""

    def answer(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        self.server.requested.append(f"{self.command} {path}")
        api = path.startswith("api/models/")
        org, name, kind, revision, *rest = [*path.removeprefix("api/models/").split("/"), ""]
        repo = self.server.repos.get(f"{org}/{name}")
        if name == "gated" and not api:
            self.send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif repo is None:
            self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", "v1", COMMIT):
            self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif kind == "revision":
            self.send_json({"id": f"{org}/{name}", "sha": COMMIT})
        elif kind == "tree":
            self.send_json([entry(file, data) for file, data in repo.items()])
        elif (file := "/".join(rest).strip("/")) == self.server.fail_on and self.command == "GET":
            self.send(500, b"", {})
        else:
            self.send_file(repo[file])

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send_file(self, data: bytes) -> None:
        self.send(200, data, {"ETag": f'"{blob_id(data)}"', "X-Repo-Commit": COMMIT})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def blob_id(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def entry(file: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": file, "size": len(data), "oid": blob_id(data)}


@pytest.fixture
def hub(tiny_folder: Path) -> Iterator[Hub]:
    server = Hub()
    files = {path.name: path.read_bytes() for path in tiny_folder.iterdir()}
    server.repos["someone/tiny"] = {**files, **UNWANTED}
    server.repos["someone/gated"] = files
    server.repos["someone/pickled"] = {"config.json": b"{}", **UNWANTED}
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hub_manager(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelManager:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return ModelManager(tmp_path / "cache", HfApi(endpoint=hub.endpoint, token=False))


def test_a_hub_model_is_downloaded_once_without_pickles_or_code(
    hub: Hub, hub_manager: ModelManager
) -> None:
    folder = hub_manager.resolve("someone/tiny")
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "checksums.json"} <= names
    assert not names & {"pytorch_model.bin", "original", "run.py", ".cache"}
    assert hub_manager.verify("someone/tiny") == len(names) - 1

    hub.requested.clear()
    assert hub_manager.resolve("someone/tiny") == folder
    assert hub.requested == []


def test_a_downloaded_model_is_listed_described_and_removed(
    hub_manager: ModelManager, embedded_model_dir: Path
) -> None:
    embedded = hub_manager.cache_dir / "embedded" / embedded_model_dir.name
    embedded.parent.mkdir(parents=True)
    embedded.symlink_to(embedded_model_dir)
    hub_manager.resolve("someone/tiny", "v1")
    listed = [(info.name, info.revision) for info in hub_manager.list() if info.kind == "hub"]
    assert listed == [("someone/tiny", "v1")]
    assert hub_manager.describe("someone/tiny", "v1").layers == 2
    hub_manager.remove("someone/tiny", "v1")
    with pytest.raises(ModelNotFoundError, match="not downloaded"):
        hub_manager.describe("someone/tiny", "v1")


def test_a_broken_download_is_no_model_and_is_resumed_later(
    hub: Hub, hub_manager: ModelManager
) -> None:
    hub.fail_on = "model.safetensors"
    with pytest.raises(ModelError, match="someone/tiny"):
        hub_manager.resolve("someone/tiny")
    with pytest.raises(ModelNotFoundError, match="not downloaded"):
        hub_manager.verify("someone/tiny")
    partial = hub_manager.cache_dir / "hub" / "someone--tiny.partial"
    kept = {path.name for path in partial.iterdir() if path.is_file()}

    hub.fail_on = None
    hub.requested.clear()
    hub_manager.resolve("someone/tiny")
    assert hub_manager.verify("someone/tiny") > 3
    fetched = {request.rpartition("/")[2] for request in hub.requested if "GET some" in request}
    assert kept
    assert "model.safetensors" in fetched
    assert not kept & fetched


def test_a_gated_model_needs_a_token(hub_manager: ModelManager) -> None:
    with pytest.raises(ModelError, match=r"gated.*HF_TOKEN"):
        hub_manager.resolve("someone/gated")


def test_an_unknown_model_and_an_unknown_revision_get_different_errors(
    hub_manager: ModelManager,
) -> None:
    with pytest.raises(ModelNotFoundError, match=r"someone/nothing is not on the hub, or private"):
        hub_manager.resolve("someone/nothing")
    with pytest.raises(ModelNotFoundError, match=r"has no revision 'v2'"):
        hub_manager.resolve("someone/tiny", "v2")
    assert not list((hub_manager.cache_dir / "hub").glob("*.partial"))


def test_a_model_with_only_pickles_is_refused(hub: Hub, hub_manager: ModelManager) -> None:
    with pytest.raises(ModelError, match="no weights as safetensors"):
        hub_manager.resolve("someone/pickled")
    assert not any(path.endswith(".bin") for path in hub.requested)


def test_offline_mode_is_named_with_its_cure(
    hub_manager: ModelManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client's import sets this for HF_HUB_OFFLINE=1.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match=r"OfflineModeIsEnabled.*unset HF_HUB_OFFLINE"):
        hub_manager.resolve("someone/tiny")


def test_a_hub_that_does_not_answer_is_unreachable(
    manager: ModelManager, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub.shutdown()
    hub.server_close()
    unreachable = ModelManager(manager.cache_dir, HfApi(endpoint=hub.endpoint, token=False))
    with pytest.raises(ModelNotFoundError, match=r"cannot be reached \(ConnectError\)"):
        unreachable.resolve("someone/tiny")


@pytest.mark.parametrize("revision", [None, "v1.0", "refs/pr/1", "..", "a@b"])
def test_a_folders_name_gives_its_id_and_revision(tmp_path: Path, revision: str | None) -> None:
    folder = hub_folder(tmp_path, "some-one/a-model_1.5", revision)
    assert folder.parent == tmp_path
    assert folder.resolve() == folder
    assert hub_id(folder) == ("some-one/a-model_1.5", revision)


@pytest.mark.parametrize(
    "name", ["model", "a/b/c", "../b", "a/..", "a--b/c", "/a/b", "a b/c", "a/"]
)
def test_other_names_are_no_hub_ids(name: str) -> None:
    assert not is_hub_id(name)
