"""`llamahome serve promote`, as far as it goes without an endpoint; test_end_to_end has one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from serve import promote
from tests.ports import free_ports


class Refusing(BaseHTTPRequestHandler):
    """Refuses each request as the endpoint does, and repeats its key and body."""

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        said = f"{self.path} {self.headers['Authorization']} {self.rfile.read(length).decode()}"
        self.send_response(400)
        self.end_headers()
        self.wfile.write(json.dumps({"error": {"message": said}}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        promote.main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_refusal_is_one_line(url, capsys, monkeypatch):
    monkeypatch.setenv("LLAMAHOME_API_KEY", "secret")
    assert run("my-run", "--model", "small", "--url", f"{url}/") == 1
    body = '{"run": "my-run", "model": "small"}'
    assert capsys.readouterr().err == f"error: /admin/promote Bearer secret {body}\n"


def test_without_an_endpoint_the_cure_is_named(capsys):
    (port,) = free_ports(1)
    assert run("my-run", "--url", f"http://127.0.0.1:{port}") == 1
    assert "--url" in capsys.readouterr().err
