"""Files at URLs: found, read and compared like files on this machine."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from llamahome.data import DataError, files_of, plain_texts, raw_records
from llamahome.data.files import SourceFile


def line(name: str) -> bytes:
    return json.dumps({"text": name}).encode()


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """Files at memory:// as an object store has them."""
    system = fsspec.filesystem("memory")
    for name in ("b.jsonl", "a.json", "in/c.jsonl", "notes.csv"):
        system.pipe(f"/set/{name}", line(name))
    system.pipe("/set/in/d.jsonl.gz", gzip.compress(line("d")))
    system.pipe("/texts/e.txt", b"one")
    yield system
    system.store.clear()


def texts(source: str) -> list[str]:
    return [value["text"] for _, value in raw_records(source)]


@pytest.mark.usefixtures("memory")
def test_a_url_is_a_file_a_folder_or_a_pattern() -> None:
    assert texts("memory://set/b.jsonl") == ["b.jsonl"]
    assert texts("memory://set") == ["a.json", "b.jsonl", "in/c.jsonl", "d"]
    assert texts("memory://set/*.jsonl") == ["b.jsonl"]
    assert texts("memory://set/**/*.jsonl*")[-2:] == ["in/c.jsonl", "d"]
    [text] = plain_texts("memory://texts", "auto")
    assert text.name == "memory:///texts/e.txt"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://none.jsonl", "memory://none.jsonl: holds no file of records"),
        ("memory://empty", "memory://empty: holds no file of records"),
        ("nowhere://a.jsonl", r"nowhere://a\.jsonl: cannot be opened \(Protocol not known"),
        ("simplecache::memory://set", "is a chain of URLs; give one that is no chain"),
        ("http://127.0.0.1:9/a.jsonl", r"^http://127\.0\.0\.1:9/a\.jsonl: "),
    ],
)
@pytest.mark.usefixtures("memory")
def test_a_url_that_cannot_be_read_is_one_line(url: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        texts(url)
    assert "\n" not in str(error.value)


def test_the_digest_changes_with_the_content(memory: fsspec.AbstractFileSystem) -> None:
    file = SourceFile("memory://set/b.jsonl")
    before = file.digest()
    assert file.digest() == before
    memory.pipe("/set/b.jsonl", line("other"))
    assert file.digest() != before


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_file_of_a_web_server(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(line("one") + b"\n" + line("two"))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.jsonl"
        assert texts(url) == ["one", "two"]
        [file] = files_of(url)
        before = file.digest()
        (tmp_path / "a.jsonl").write_bytes(line("else"))
        assert file.digest() != before
        with pytest.raises(DataError, match=r"b\.jsonl: holds no file of records"):
            files_of(url.replace("/a.", "/b."))
        server.shutdown()
