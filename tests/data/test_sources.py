"""Raw records of every kind of file, folder and data set, with their places."""

from __future__ import annotations

import gzip
import importlib
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from llamahome.data import BadRecord, DataError, exists, is_hub_id, plain_texts, raw_records

ONE, TWO = {"text": "one"}, {"text": "two {\n"}


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8", newline="")
    return file


def values(source: Any) -> list[Any]:
    return [value for _, value in raw_records(str(source))]


def places(source: Any) -> list[str]:
    return [where.rpartition("/")[2] for where, _ in raw_records(str(source))]


JSON_FILES = {
    "lines": f"{json.dumps(ONE)}\n\n{json.dumps(TWO)}\n",
    "crlf": f"{json.dumps(ONE)}\r\n\r\n{json.dumps(TWO)}\r\n",
    "no end": f"{json.dumps(ONE)}\n\n{json.dumps(TWO)}",
    "a mark in front": f"\ufeff{json.dumps(ONE)}\n\n{json.dumps(TWO)}",
    "files joined": f"{json.dumps(ONE)}\n\n\ufeff{json.dumps(TWO)}",
}


@pytest.mark.parametrize("text", JSON_FILES.values(), ids=JSON_FILES)
def test_json_lines(tmp_path: Path, text: str) -> None:
    file = write(tmp_path, "a.jsonl", text)
    assert values(file) == [ONE, TWO]
    assert places(file) == ["a.jsonl:1", "a.jsonl:3"]


def test_objects_over_several_lines(tmp_path: Path) -> None:
    text = f"{json.dumps(ONE, indent=2)}\n{json.dumps(TWO, indent=2)}\n{json.dumps(ONE)}"
    file = write(tmp_path, "a.json", text)
    assert values(file) == [ONE, TWO, ONE]
    assert places(file) == ["a.json:1", "a.json:4", "a.json:7"]


def test_objects_on_one_line(tmp_path: Path) -> None:
    assert values(write(tmp_path, "a.json", json.dumps(ONE) * 2)) == [ONE, ONE]


def test_a_list_of_objects(tmp_path: Path) -> None:
    file = write(tmp_path, "a.json", json.dumps([ONE, TWO], indent=1))
    assert values(file) == [ONE, TWO]
    assert places(file) == ["a.json: record 1", "a.json: record 2"]


def test_line_separators_within_a_string_do_not_end_the_line(tmp_path: Path) -> None:
    record = {"text": "one\u2028two\x85three"}
    assert values(write(tmp_path, "a.jsonl", json.dumps(record, ensure_ascii=False))) == [record]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{'text': 1}", r"a.jsonl:2: not JSON \(.*column 2\); write one JSON object after"),
        ('{"text": "one"', r"a.jsonl:2: not JSON \(.*line 3\)"),
        ('{"text": "one"},', r"a.jsonl:2: not JSON \(Extra data"),
        ("nonsense", r"a.jsonl:2: not JSON"),
        ("[" * 200_000, r"a.jsonl:2: not JSON \(maximum recursion depth"),
        ("9" * 5000, r"a.jsonl:2: not JSON \(Exceeds the limit"),
        ('{\n  "text": one,\n  "b": {}\n}', r"a.jsonl:2: not JSON \(.*line 3\)"),
    ],
)
def test_what_is_no_json_is_one_bad_record(tmp_path: Path, bad: str, message: str) -> None:
    read = values(write(tmp_path, "a.jsonl", f"{json.dumps(ONE)}\n{bad}\n{json.dumps(TWO)}\n"))
    assert [read[0], read[2]] == [ONE, TWO]
    assert isinstance(read[1], BadRecord)
    with pytest.raises(BadRecord, match=message):
        raise read[1]


def test_bad_json_within_a_list_is_named_by_its_line(tmp_path: Path) -> None:
    file = write(tmp_path, "a.json", '[\n{"a": "a"},\n{"a" "b"}]')
    with pytest.raises(DataError, match=r"a\.json:3: not JSON"):
        values(file)


@pytest.mark.parametrize("text", ["", "\n \n", "[]"])
def test_file_without_records_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl: holds no record"):
        values(write(tmp_path, "a.jsonl", text))


def test_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes('{"messages": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.jsonl: is no UTF-8 text .*; save it as UTF-8"):
        values(file)


def test_compressed_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(ONE).encode()))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("\ufefftwo".encode()))
    assert values(tmp_path / "a.jsonl.gz") == [ONE]
    assert values(tmp_path / "b.txt.gz") == [{"text": "two"}]


def test_parquet_without_the_nulls_that_it_fills_in(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "weight": None}]},
        {"messages": [{"role": "x", "weight": 1}]},
    ]
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    assert values(file) == [{"messages": [{"role": "user"}]}, rows[1]]
    assert places(file) == ["a.parquet: row 1", "a.parquet: row 2"]
    file.write_text("no parquet")
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet \(.*\); write it"):
        values(file)


def test_folders_and_patterns_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / ".cache").mkdir()
    ignored = ("in/notes.csv", "README.md", ".hidden.jsonl", ".cache/d.jsonl")
    for name in ("b.jsonl", "a.json", "in/c.jsonl", *ignored):
        write(tmp_path, name, json.dumps({"text": name}))
    assert values(tmp_path) == [{"text": n} for n in ("a.json", "b.jsonl", "in/c.jsonl")]
    assert values(tmp_path / "*.jsonl") == [{"text": "b.jsonl"}]
    assert values(tmp_path / "**/*.jsonl") == [{"text": "b.jsonl"}, {"text": "in/c.jsonl"}]
    assert exists(tmp_path / "*.jsonl")
    assert not exists(tmp_path / "*.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: holds no file of records; give files ending in"):
        values(tmp_path / "empty")


def test_a_saved_data_set_and_its_splits(tmp_path: Path) -> None:
    datasets = importlib.import_module("datasets")
    one, two = (datasets.Dataset.from_list([record]) for record in (ONE, TWO))
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=one, test=two).save_to_disk(tmp_path / "both")
    assert values(tmp_path / "one") == values(tmp_path / "both") == [ONE]
    assert values(f"{tmp_path}/both:test") == [TWO]
    assert places(f"{tmp_path}/both:test") == ["both:test: row 0"]
    with pytest.raises(DataError, match="both:dev: has no split 'dev'; name one of train, test"):
        values(f"{tmp_path}/both:dev")
    with pytest.raises(DataError, match="one:test: it was saved without splits; leave :test out"):
        values(f"{tmp_path}/one:test")
    with pytest.raises(DataError, match="only data sets have splits; leave the colon out"):
        values(f"{tmp_path}:test")


def test_a_hub_id_that_cannot_be_loaded_is_one_line() -> None:
    with pytest.raises(DataError, match=r"^nobody/nothing:test: cannot be loaded .*network") as no:
        values("nobody/nothing:test")
    assert "\n" not in str(no.value)


def test_names_of_the_hub() -> None:
    assert is_hub_id("owner/name-2.0")
    names = ("name", "a/b/c", "./chats", "../chats", "data/mine.jsonl", "data/mine.txt.gz", "/a/b")
    assert not any(map(is_hub_id, names))


def test_plain_texts_are_told_from_records(tmp_path: Path) -> None:
    text, book = write(tmp_path, "a.txt", "x"), write(tmp_path, "book", "x")
    records = write(tmp_path, "b.jsonl", json.dumps(ONE))
    for file, format, expected in [
        (text, "auto", [text]),
        (text, "text", [text]),
        (text, "chat", []),
        (records, "text", []),
        (book, "text", [book]),
        (tmp_path, "auto", []),
    ]:
        found = plain_texts(str(file), format)
        assert [Path(own.name) for own in found] == expected
    assert values(tmp_path) == [{"text": "x"}, ONE]
