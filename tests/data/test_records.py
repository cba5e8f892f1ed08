from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamahome.data import DataError, Record, read_records, split_records

USER = {"role": "user", "content": "Hi."}
ASSISTANT = {"role": "assistant", "content": "Hello."}
GOOD = json.dumps({"messages": [USER, ASSISTANT]})


def write(folder: Path, text: str) -> Path:
    file = folder / "records.jsonl"
    file.write_text(text, encoding="utf-8")
    return file


def chat_line(*messages: Any) -> str:
    return json.dumps({"messages": list(messages)})


def numbered(count: int) -> list[Record]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"{i}?"},
                {"role": "assistant", "content": f"{i}"},
            ]
        }
        for i in range(count)
    ]


def test_chat_lines_are_read_in_order_and_other_keys_ignored(tmp_path: Path) -> None:
    extra = {"id": 7, "messages": [{**USER, "name": "me"}, ASSISTANT]}
    file = write(tmp_path, "\ufeff" + GOOD + "\n\n" + json.dumps(extra) + "\n")
    assert read_records(file, "chat") == [{"messages": [USER, ASSISTANT]}] * 2


def test_line_separators_within_a_string_do_not_end_the_line(tmp_path: Path) -> None:
    message = {"role": "user", "content": "one\u2028two\x85three"}
    line = json.dumps({"messages": [message, ASSISTANT]}, ensure_ascii=False)
    assert read_records(write(tmp_path, line), "chat") == [{"messages": [message, ASSISTANT]}]


@pytest.mark.parametrize("as_list", [True, False], ids=["list", "lines"])
def test_alpaca_records_become_chats(tmp_path: Path, as_list: bool) -> None:
    raw = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Greet.", "input": "", "output": "Hello."},
        {"instruction": "Part.", "output": "Bye."},
    ]
    text = json.dumps(raw, indent=1) if as_list else "\n".join(map(json.dumps, raw))
    turns = [r["messages"] for r in read_records(write(tmp_path, text), "alpaca")]
    assert [[m["role"] for m in turn] for turn in turns] == [["user", "assistant"]] * 3
    assert [turn[0]["content"] for turn in turns] == ["Add.\n\n1 and 2", "Greet.", "Part."]
    assert [turn[1]["content"] for turn in turns] == ["3", "Hello.", "Bye."]


@pytest.mark.parametrize(
    ("format", "second", "message"),
    [
        ("chat", "{'messages': 1}", r":2: not JSON \(.*column 2\); write one JSON object per line"),
        ("chat", "[1]", r":2: list where a JSON object is needed"),
        ("chat", '{"text": "a"}', r":2: the key 'messages' is missing \(keys here: text\)"),
        ("chat", '{"messages": []}', r":2: messages must be a list of at least one turn"),
        ("chat", chat_line({"role": "user"}), r":2: messages\[0\]: the key 'content' is missing"),
        ("chat", chat_line({"content": "a"}), r":2: messages\[0\]: the key 'role' is missing"),
        ("chat", chat_line("Hi."), r":2: messages\[0\]: str where a JSON object is needed"),
        (
            "chat",
            chat_line({"role": "human", "content": "Hi."}, ASSISTANT),
            r":2: messages\[0\]: role 'human' is unknown; use one of system, user, assistant",
        ),
        (
            "chat",
            chat_line(USER, {"role": "assistant", "content": " \n"}),
            r":2: messages\[1\]: content is empty; fill it or remove the record",
        ),
        (
            "chat",
            chat_line({"role": "user", "content": [{"type": "text"}]}),
            r":2: messages\[0\]: content is list; it must be a string",
        ),
        ("chat", chat_line(USER), r":2: messages has no assistant turn"),
        ("chat", chat_line(ASSISTANT), r":2: messages\[0\]: put the user turn it answers before"),
        (
            "chat",
            chat_line(USER, ASSISTANT, ASSISTANT),
            r":2: messages\[2\]: put the user turn it answers before",
        ),
        ("alpaca", '{"instruction": "Do."}', r":2: the key 'output' is missing"),
        ("alpaca", '{"instruction": "", "output": "a"}', r":2: instruction is empty"),
        ("alpaca", '{"instruction": "a", "input": 3, "output": "a"}', r":2: input is int"),
        ("alpaca", GOOD, r":2: the key 'instruction' is missing .* set data.format to what"),
    ],
)
def test_bad_records_are_named_by_file_line_and_field(
    tmp_path: Path, format: str, second: str, message: str
) -> None:
    first = GOOD if format == "chat" else '{"instruction": "Do.", "output": "Done."}'
    with pytest.raises(DataError, match=r"records\.jsonl" + message):
        read_records(write(tmp_path, f"{first}\n{second}\n"), format)


def test_bad_record_of_a_list_is_named_by_its_number(tmp_path: Path) -> None:
    file = write(tmp_path, json.dumps([{"instruction": "a", "output": "b"}, {"output": "b"}]))
    with pytest.raises(DataError, match=r"records\.jsonl: record 2: the key 'instruction'"):
        read_records(file, "alpaca")


def test_bad_json_within_a_list_is_named_by_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"records\.jsonl:3: not JSON"):
        read_records(write(tmp_path, '[\n{"instruction": "a"},\n{"instruction" "b"}]'), "alpaca")


@pytest.mark.parametrize("text", ["", "\n \n", "[]"])
def test_file_without_records_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"records\.jsonl: holds no record"):
        read_records(write(tmp_path, text), "alpaca")


def test_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    file.write_bytes('{"messages": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"records\.jsonl: not UTF-8 .*; save it as UTF-8"):
        read_records(file, "chat")


@pytest.mark.parametrize(
    ("count", "fraction", "held"), [(100, 0.1, 10), (3, 0.01, 1), (2, 0.99, 1)]
)
def test_split_holds_out_a_share_and_loses_no_record(
    count: int, fraction: float, held: int
) -> None:
    records = numbered(count)
    train, evaluation = split_records(records, fraction, seed=3)
    assert len(evaluation) == held
    in_order = sorted(train + evaluation, key=records.index)
    assert in_order == records
    assert train == [record for record in records if record in train]


def test_split_is_a_function_of_the_seed() -> None:
    records = numbered(50)
    assert split_records(records, 0.2, 1) == split_records(records, 0.2, 1)
    assert split_records(records, 0.2, 1) != split_records(records, 0.2, 2)


def test_one_record_cannot_be_split() -> None:
    with pytest.raises(DataError, match="1 record cannot be split"):
        split_records(numbered(1), 0.5, 0)
