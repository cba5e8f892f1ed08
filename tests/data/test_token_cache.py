"""Tables on disk: made once for all processes, whole or not at all, the oldest removed first."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from llamahome.config import checkout
from llamahome.data import DataError, Row, TokenCache, TokenTable
from llamahome.data.table import TableWriter
from llamahome.data.token_cache import Make

# Says that it asks, and that it makes; a maker is not done before `go` is there.
PROGRAM = """
import os, sys, time
from pathlib import Path
from llamahome.data import TokenCache, TokenTable

here = Path(sys.argv[1])

def make(writer):
    row = {"input_ids": [5, 6, 7], "attention_mask": [1] * 3, "labels": [-100, 6, 7]}
    writer.append(TokenTable.of([row] * 1000))
    (here / f"making-{os.getpid()}").touch()
    while not (here / "go").exists():
        time.sleep(0.01)
    return []

(here / f"asks-{os.getpid()}").touch()
table = TokenCache(here / "tokens", 10**9).table("key", "a.jsonl", make)
print(len(table), table.columns["labels"].sum())
"""


def row(*tokens: int) -> Row:
    return {"input_ids": [*tokens], "attention_mask": [1] * len(tokens), "labels": [*tokens]}


def maker(rows: Iterable[Row], made: list[int] | None = None) -> Make:
    def make(writer: TableWriter) -> list[str]:
        table = TokenTable.of(rows)
        writer.append(table)
        if made is not None:
            made.append(len(table))
        return []

    return make


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start(here: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(checkout())}
    command = [sys.executable, "-c", PROGRAM, str(here)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_killed_maker_leaves_nothing_and_of_those_that_follow_one_makes(tmp_path: Path) -> None:
    with start(tmp_path) as killed:
        wait_until(lambda: (tmp_path / f"making-{killed.pid}").exists())
        assert (tmp_path / "tokens" / "key.unfinished").is_dir()
        killed.kill()
    assert TokenCache(tmp_path / "tokens", 10**9).entries() == []
    with start(tmp_path) as one, start(tmp_path) as other:
        wait_until(lambda: len([*tmp_path.glob("asks-*")]) == 3)
        wait_until(lambda: len([*tmp_path.glob("making-*")]) == 2)
        (tmp_path / "go").touch()
        said = [process.communicate()[0] for process in (one, other)]
    assert said == [f"1000 {1000 * (6 + 7 - 100)}\n"] * 2
    assert len([*tmp_path.glob("making-*")]) == 2
    assert {path.name for path in (tmp_path / "tokens").iterdir()} == {"key", "key.lock"}


@pytest.mark.parametrize("name", ["input_ids.bin", "labels.bin", "spans.bin", "entry.json"])
@pytest.mark.parametrize("damage", ["changed", "shorter", "missing"])
def test_a_damaged_table_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    cache, made = TokenCache(tmp_path, 10**9), list[int]()
    rows = [row(1, 2), row(3, 4, 5)]
    for _ in range(2):
        cache.table("key", "a.jsonl", maker(rows, made))
    assert made == [2]
    file = tmp_path / "key" / name
    content = file.read_bytes()
    match damage:
        case "changed":
            file.write_bytes(b"\x07" + content[1:])
        case "shorter":
            file.write_bytes(content[:-2])
        case "missing":
            file.unlink()
    table = cache.table("key", "a.jsonl", maker(rows, made))
    assert made == [2, 2]
    assert table.columns["input_ids"].tolist() == [1, 2, 3, 4, 5]
    assert table.spans.tolist() == [[0, 2, 2], [2, 5, 5]]
    assert cache.table("key", "a.jsonl", maker(rows, made)) is not None
    assert made == [2, 2]
    assert caplog.text.count("a.jsonl is tokenised again") == 1


def test_the_least_recently_used_are_removed_and_maps_outlive_them(tmp_path: Path) -> None:
    sizes = TokenCache(tmp_path / "one", 10**9)
    sizes.table("key", "a", maker([row(*range(1000))]))
    [entry] = sizes.entries()
    cache = TokenCache(tmp_path / "two", entry.nbytes * 5 // 2)
    tables = {}
    for second, name in enumerate("abac", start=1):
        tables[name] = cache.table(name, name, maker([row(*range(1000))]))
        os.utime(cache.folder / name, (second, second))
    assert [entry.source for entry in cache.entries()] == ["c", "a"]
    assert (tables["b"].columns["labels"] == np.arange(1000)).all()
    TokenCache(cache.folder, 0).table("d", "d", maker([row(1)]))
    assert [entry.source for entry in cache.entries()] == ["d"]
    assert cache.clear() == 1
    assert cache.entries() == []


def test_a_maker_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(writer: TableWriter) -> list[str]:
        writer.append(TokenTable.of([row(1)]))
        raise DataError("a.jsonl:2: not JSON")

    cache = TokenCache(tmp_path, 10**9)
    with pytest.raises(DataError, match=r"^a\.jsonl:2: not JSON$"):
        cache.table("key", "a.jsonl", fails)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data\.cache_dir='.*file/tokens': Not a directory; name"):
        TokenCache(tmp_path / "file" / "tokens", 0).table("key", "a", maker([row(1)]))
