"""Records encoded by child processes: the same rows in the same order."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from llamahome.config import DataConfig
from llamahome.data import BadRecords, DataError, RowOptions, TokenCache, encoding, read_rows
from llamahome.data.encoding import ChunkEncoder, encode_records
from tests.train.plain_rows import plain_rows


class Deadly:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> Any:
        # Coverage replaces os._exit by a function that cannot be pickled.
        return exec, ("import os; os._exit(7)",)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children start after three records, and take three at a time."""
    monkeypatch.setattr(encoding, "CHUNK", 3)
    monkeypatch.setattr(encoding, "CHUNKS_BEFORE_CHILDREN", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


@pytest.mark.usefixtures("small_chunks")
def test_children_encode_the_same_rows_in_the_same_order(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    file = tmp_path / "a.jsonl"
    lines = [
        json.dumps({"messages": [{"role": "assistant", "content": f"{n} " * (n % 5 + 1)}]})
        for n in range(60)
    ]
    lines[20:20] = ["{broken"]
    lines[40:40] = ['{"messages": 3}']
    file.write_text("\n".join(lines))
    bad = BadRecords(2)
    cache = TokenCache(tmp_path / "tokens", 10**9)
    table = read_rows(str(file), RowOptions("chat", "all", 64), byte_tokenizer, bad, cache)
    rows = plain_rows(str(file), "train", DataConfig(format="chat", train_on="all"), byte_tokenizer)
    for key in ("input_ids", "labels"):
        assert table.columns[key].tolist() == [value for row in rows for value in row[key]]
    assert [end - begin for begin, _, end in table.spans] == [len(row["labels"]) for row in rows]
    assert [reason.partition(":")[2][:3] for reason in bad.reasons] == ["21:", "41:"]


@pytest.mark.usefixtures("small_chunks")
def test_a_child_that_ends_is_told_with_its_exit_code(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    records = [(f"a:{n}", {"text": "x"}) for n in range(4)] + [("a:5", Deadly())]
    encoder = ChunkEncoder(byte_tokenizer, "text", "all")
    with pytest.raises(DataError, match="a process that tokenises ended with exit code 7"):
        list(encode_records(iter(records), encoder, processes=1))
