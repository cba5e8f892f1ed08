"""`llamahome data cache` on a folder with two tokenised sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamahome.data import TokenCache, TokenTable, token_cache
from tests.cli.terminal import run


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenCache:
    monkeypatch.setattr(token_cache, "cache_folder", lambda: tmp_path)
    cache = TokenCache.of(None, 10**9)
    for name, rows in {"chats.jsonl": 3, "more.jsonl": 1}.items():
        row = {"input_ids": [1] * 500, "attention_mask": [1] * 500, "labels": [1] * 500}
        table = TokenTable.of([row] * rows)

        def make(writer: object, table: TokenTable = table) -> list[str]:
            writer.append(table)  # type: ignore[attr-defined]
            return []

        cache.table(name.partition(".")[0], name, make)
    return cache


def test_the_sources_are_listed_measured_and_removed(cache: TokenCache) -> None:
    listed = run("data", "cache", "list")
    assert listed.exit_code == 0, listed.output
    [chats] = [line for line in listed.output.splitlines() if "chats.jsonl" in line]
    assert [cell.strip() for cell in chats.split("│")[2:4]] == ["3", "1,500"]
    assert run("data", "cache", "size").output == f"0.0 MiB of 2 sources in {cache.folder}\n"
    assert run("data", "cache", "clear", stdin="n\n").exit_code == 1
    assert len(cache.entries()) == 2
    assert run("data", "cache", "clear", "--yes").output == "2 sources are removed\n"
    assert cache.entries() == []
    assert run("data", "cache", "size").output.startswith("0.0 MiB of 0 sources")


def test_another_folder_is_taken_by_name(cache: TokenCache, tmp_path: Path) -> None:
    assert "of 0 sources" in run("data", "cache", "size", "--dir", str(tmp_path / "none")).output
    assert "of 2 sources" in run("data", "cache", "size", "--dir", str(cache.folder)).output
