"""Records of every format: taken as they are meant, or refused by place and field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llamahome.data import (
    BadRecord,
    Chat,
    Completion,
    Preference,
    Tokens,
    parse_record,
)

USER = {"role": "user", "content": "Hi."}
ASSISTANT = {"role": "assistant", "content": "Hello."}
WORSE = {"role": "assistant", "content": "What?"}
CALL = {"name": "sky", "arguments": {"at": "noon"}}
CALLS = [{"type": "function", "function": CALL}]
SKY = {"name": "sky", "parameters": {"type": "object"}}


def parsed(raw: Any, format: str = "auto") -> Any:
    return parse_record(raw, format, "f:2")


def turns(*messages: Any, **keys: Any) -> dict[str, Any]:
    return {"messages": list(messages), **keys}


def learned(*messages: Any) -> list[bool | None]:
    return list(parsed(turns(*messages)).learned)


CHAT = Chat("f:2", [USER, ASSISTANT], [None, None])
FORMATS = {
    "chat": (turns({**USER, "id": 7}, ASSISTANT, id=7, text="Hi. Hello."), CHAT),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]},
        CHAT,
    ),
    "alpaca": ({"instruction": "Hi.", "input": "", "output": "Hello."}, CHAT),
    "completion": (
        {"prompt": "2 + 2 =", "completion": " 4"},
        Completion("f:2", "2 + 2 =", " 4"),
    ),
    "preference": (
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [WORSE]},
        Preference(
            "f:2",
            Chat("f:2", [USER, ASSISTANT], [False, None]),
            Chat("f:2", [USER, WORSE], [False, None]),
        ),
    ),
    "text": ({"text": "one\r\ntwo"}, Completion("f:2", "", "one\ntwo")),
    "tokens": ({"input_ids": [1, 2], "labels": [-100, 2]}, Tokens("f:2", [1, 2], [-100, 2])),
}


@pytest.mark.parametrize("format", FORMATS)
def test_a_format_is_read_and_detected(format: str) -> None:
    raw, record = FORMATS[format]
    assert parsed(raw, format) == record
    assert parsed(raw) == record
    assert parsed({**raw, "weight": None, "other": 1}) == record


def test_alpacas_input_follows_the_instruction() -> None:
    raw = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    assert parsed(raw).messages[0]["content"] == "Add.\n\n1 and 2"


def test_tokens_without_labels_are_all_learned() -> None:
    assert parsed({"input_ids": [3, 4]}).labels == [3, 4]


@pytest.mark.parametrize(
    "raw",
    [
        {"chosen": [USER, ASSISTANT], "rejected": [USER, WORSE]},
        {"prompt": "Hi.", "chosen": [USER, ASSISTANT], "rejected": [USER, WORSE]},
        {"prompt": "Hi.", "chosen": [ASSISTANT], "rejected": [WORSE]},
    ],
)
def test_a_prompt_is_in_the_answers_or_next_to_them(raw: dict[str, Any]) -> None:
    assert parsed(raw) == FORMATS["preference"][1]


def test_turns_that_both_answers_share_are_not_learned() -> None:
    before = [USER, ASSISTANT, USER]
    found = parsed({"chosen": [*before, ASSISTANT], "rejected": [*before, WORSE]})
    assert found.chosen.learned == found.rejected.learned == [False, False, False, None]


def test_texts_are_preferred_as_completions() -> None:
    found = parsed({"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"})
    assert found.chosen == Completion("f:2", "2 + 2 =", " 4")
    assert found.rejected == Completion("f:2", "2 + 2 =", " 5")


def test_of_a_completion_of_messages_only_the_completion_is_learned() -> None:
    raw = {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}
    record = parsed(raw)
    assert record.messages == [USER, ASSISTANT, USER, ASSISTANT]
    assert record.learned == [False, False, False, None]


def test_roles_of_other_formats_have_the_templates_names() -> None:
    names = ["developer", "human", "gpt", "observation", "model"]
    raw = {"conversations": [{"from": name, "value": "x"} for name in names]}
    roles = [message["role"] for message in parsed(raw).messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]


def test_sharegpts_system_comes_first_and_its_calls_are_tool_calls() -> None:
    conversations = [
        {"from": "human", "value": "Hi."},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "blue"},
        {"from": "gpt", "value": "Hello."},
    ]
    raw = {"conversations": conversations, "system": "Be brief.", "tools": json.dumps([SKY])}
    record = parsed(raw)
    assert record.messages[0] == {"role": "system", "content": "Be brief."}
    assert record.messages[2] == {"role": "assistant", "content": "", "tool_calls": CALLS}
    assert record.tools == [{"type": "function", "function": SKY}]


@pytest.mark.parametrize("arguments", [{"at": "noon"}, '{"at": "noon"}'])
def test_tool_calls_hold_arguments_as_an_object(arguments: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "sky", "arguments": arguments}}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "1", "content": ""}
    record = parsed(turns(USER, asked, result, ASSISTANT, tools=[SKY]))
    assert record.messages[1]["tool_calls"] == [{"id": "1", **CALLS[0]}]
    assert record.messages[2] == result


def test_content_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": ".\r\n"}]
    record = parsed(turns({"role": "user", "content": parts}, ASSISTANT))
    assert record.messages[0]["content"] == "Hi.\n"


@pytest.mark.parametrize("content", ["", " \n", None, []])
def test_an_empty_system_turn_is_dropped(content: Any) -> None:
    assert parsed(turns({"role": "system", "content": content}, USER, ASSISTANT)) == CHAT


def test_assistant_turns_may_open_and_follow_each_other() -> None:
    assert parsed(turns(ASSISTANT, USER, ASSISTANT, ASSISTANT)).learned == [None] * 4


def test_train_and_weight_say_what_is_learned() -> None:
    off, on = {**ASSISTANT, "weight": 0}, {**ASSISTANT, "train": True}
    assert learned(USER, off, USER, on) == [None, False, None, True]
    assert learned({**USER, "weight": 0}, {**ASSISTANT, "train": None}) == [False, None]
    assert learned(USER, {**ASSISTANT, "weight": 1.0, "train": True}) == [None, True]


BAD: list[tuple[str, Any, str]] = [
    ("chat", [1], "f:2: list where a JSON object is needed"),
    ("auto", {"a": 1, "b": 2}, r"f:2: keys 'a', 'b' are of no known format \(chat: messages; "),
    ("auto", {}, r"f:2: keys none are of no known format .*; rename them, or set data.format"),
    ("chat", {"text": "a"}, r"f:2: the key 'messages' is missing \(keys here: text\)"),
    ("chat", turns(), "f:2: messages must be a list with at least one entry"),
    ("chat", {"messages": "Hi."}, "f:2: messages must be a list"),
    ("chat", turns({"role": "user"}), r"f:2: messages\[0\]: the key 'content' is missing"),
    ("chat", turns({"content": "a"}), r"f:2: messages\[0\]: the key 'role' is missing"),
    ("chat", turns("Hi."), r"f:2: messages\[0\]: str where a JSON object is needed"),
    (
        "chat",
        turns({"role": "boss", "content": "Hi."}, ASSISTANT),
        r"f:2: messages\[0\]: role 'boss' is unknown; use one of system, developer, user",
    ),
    (
        "chat",
        turns(USER, {"role": "assistant", "content": " \n"}),
        r"f:2: messages\[1\]: content is empty; fill it or remove the record",
    ),
    ("chat", turns({"role": "user", "content": 3}), r"f:2: messages\[0\]: content is int; it must"),
    (
        "chat",
        turns({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ASSISTANT),
        r"f:2: messages\[0\]: content\[0\]: a part of type 'image_url', .* remove the part",
    ),
    ("chat", turns(USER), "f:2: messages has no assistant turn"),
    (
        "chat",
        turns(USER, {**ASSISTANT, "weight": 0}),
        "f:2: messages: train or weight turns off every assistant turn",
    ),
    ("chat", turns(USER, {**ASSISTANT, "weight": 0.5}), r"messages\[1\]: weight is 0.5; .* 0 or 1"),
    ("chat", turns(USER, {**ASSISTANT, "weight": [1]}), r"messages\[1\]: weight is \[1\]; it must"),
    ("chat", turns(USER, {**ASSISTANT, "train": 1}), r"messages\[1\]: train is 1; it must be true"),
    (
        "chat",
        turns(USER, {**ASSISTANT, "train": True, "weight": 0}),
        r"messages\[1\]: train and weight contradict each other; leave one out",
    ),
    (
        "chat",
        turns({**USER, "train": True}, ASSISTANT),
        r"messages\[0\]: a turn of 'user' cannot be learned by itself; .* data.train_on=all",
    ),
    (
        "chat",
        turns(USER, {**ASSISTANT, "function_call": CALL}),
        r"messages\[1\]: function_call is OpenAI's former key; write it as tool_calls",
    ),
    (
        "chat",
        turns({**USER, "tool_calls": CALLS}, ASSISTANT),
        r"messages\[0\]: tool_calls in a turn of 'user'; only an assistant",
    ),
    (
        "chat",
        turns(USER, {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}),
        r"messages\[1\]: tool_calls\[0\]: the key 'name' is missing",
    ),
    (
        "chat",
        turns(USER, {"role": "assistant", "tool_calls": [{"name": "sky", "arguments": "{"}]}),
        r"messages\[1\]: tool_calls\[0\]: arguments: not JSON",
    ),
    (
        "chat",
        turns(USER, {"role": "assistant", "tool_calls": [{"name": "sky", "arguments": "[1]"}]}),
        r"messages\[1\]: tool_calls\[0\]: arguments is list; give a JSON object",
    ),
    ("chat", turns(USER, ASSISTANT, tools=[1]), "f:2: tools must be a list of JSON schemas"),
    ("chat", turns(USER, ASSISTANT, tools="{"), "f:2: tools: not JSON"),
    ("chat", turns(USER, ASSISTANT, tools=[{}]), r"f:2: tools\[0\]: the key 'name' is missing"),
    ("chat", turns({"role": "user", "content": "\ud800"}, ASSISTANT), "half of a surrogate pair"),
    ("sharegpt", {"conversations": [{"from": "x", "value": "y"}]}, r"\[0\]: from 'x' is unknown"),
    ("alpaca", {"instruction": "Do."}, "f:2: the key 'output' is missing"),
    ("alpaca", {"instruction": "", "output": "a"}, "f:2: instruction is empty"),
    ("alpaca", {"instruction": "a", "input": 3, "output": "a"}, "f:2: input is int"),
    ("alpaca", turns(USER), "f:2: the key 'instruction' is missing .* set data.format to what"),
    ("completion", {"prompt": "a", "completion": ""}, "f:2: completion is empty"),
    ("completion", {"prompt": "a", "completion": "b", "label": False}, "f:2: label is false"),
    ("preference", {"chosen": "a", "rejected": "b"}, "f:2: the key 'prompt' is missing"),
    ("preference", {"prompt": "a", "chosen": "b", "rejected": "b"}, "f:2: chosen and rejected are"),
    (
        "preference",
        {"prompt": "a", "chosen": [ASSISTANT], "rejected": "b"},
        "f:2: chosen and rejected must both be texts",
    ),
    (
        "preference",
        {"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT, USER]},
        "f:2: chosen has no answer after the turns",
    ),
    ("completion", {"prompt": [USER], "completion": "a"}, "f:2: prompt is list; it must"),
    ("completion", {"prompt": ["a"], "completion": [ASSISTANT]}, "f:2: prompt holds what is no"),
    ("text", {"text": 3}, "f:2: text is int"),
    ("tokens", {"input_ids": []}, "f:2: input_ids must be a list with at least one entry"),
    ("tokens", {"input_ids": [1, "2"]}, "f:2: input_ids must be a flat list of integers"),
    ("tokens", {"input_ids": [1, True]}, "f:2: input_ids must be a flat list of integers"),
    ("tokens", {"input_ids": [1], "labels": [1, 2]}, "f:2: labels has 2 entries for 1 input_ids"),
]


@pytest.mark.parametrize(("format", "raw", "message"), BAD)
def test_a_bad_record_is_named_by_place_and_field(format: str, raw: Any, message: str) -> None:
    with pytest.raises(BadRecord, match=message) as caught:
        parsed(raw, format)
    assert str(caught.value).startswith("f:2: ")
    assert "\n" not in str(caught.value)
