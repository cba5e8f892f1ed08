"""Training records of every format, checked field by field."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from llamahome.data.errors import BadRecord

Message = dict[str, Any]

# Names of the roles in the formats that are read; chat templates know the ones on the right.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
# Fields of a message that go to the chat template as they are.
PASSED_ON = ("name", "tool_call_id", "reasoning_content")


@dataclass(frozen=True)
class Chat:
    """One chat with an assistant turn at least.

    Attributes:
        messages: as the chat template takes them.
        learned: for each message what the record says: True, False, or None for nothing.
        tools: JSON schemas of the functions that the assistant may call.
    """

    where: str
    messages: list[Message]
    learned: list[bool | None]
    tools: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Completion:
    """A text and how it goes on, without a chat template; an empty prompt makes it a document."""

    where: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Tokens:
    """Token ids, with a label for each."""

    where: str
    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Preference:
    """A prompt with two answers, the one that people chose first."""

    where: str
    chosen: Chat | Completion
    rejected: Chat | Completion


Record = Chat | Completion | Tokens | Preference


def parse_record(raw: Any, format: str, where: str) -> Record:
    """Check one object of a file.

    Args:
        format: `chat`, `sharegpt`, `alpaca`, `completion`, `preference`, `text`, `tokens`, or
            `auto`, which follows from the keys. Keys that the format does not have are ignored.
        where: the file and line, which messages of errors begin with.

    Raises:
        BadRecord: for an object that cannot be used; the message names the place, the field and
            the cure.
    """
    if not isinstance(raw, dict):
        raise BadRecord(f"{where}: {type(raw).__name__} where a JSON object is needed")
    # Parquet and Hugging Face data sets fill keys that a record does not have with null.
    present = {key: value for key, value in raw.items() if value is not None}
    return _PARSERS[_detect(present, where) if format == "auto" else format](present, where)


def _detect(raw: dict[str, Any], where: str) -> str:
    for format, keys in _KEYS.items():
        if all(key in raw for key in keys):
            return format
    known = "; ".join(f"{format}: {', '.join(keys)}" for format, keys in _KEYS.items())
    raise BadRecord(
        f"{where}: keys {', '.join(map(repr, raw)) or 'none'} are of no known format ({known}); "
        "rename them, or set data.format"
    )


def _chat(raw: dict[str, Any], where: str) -> Chat:
    turns = _list(raw, "messages", where)
    return _chat_of(turns, f"{where}: messages", raw, where)


def _sharegpt(raw: dict[str, Any], where: str) -> Chat:
    turns = _list(raw, "conversations", where)
    return _chat_of(turns, f"{where}: conversations", raw, where)


def _alpaca(raw: dict[str, Any], where: str) -> Chat:
    prompt = _text(raw, "instruction", where)
    answer = _text(raw, "output", where)
    if raw.get("input"):
        prompt += "\n\n" + _text(raw, "input", where)
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return Chat(where, messages, [None, None])


def _preference(raw: dict[str, Any], where: str) -> Preference:
    chosen, rejected = (_answered(raw, name, where) for name in ("chosen", "rejected"))
    if type(chosen) is not type(rejected):
        raise BadRecord(f"{where}: chosen and rejected must both be texts, or both messages")
    if isinstance(chosen, Chat) and isinstance(rejected, Chat):
        shared = _shared_turns(chosen.messages, rejected.messages)
        if shared == len(chosen.messages) == len(rejected.messages):
            raise BadRecord(f"{where}: chosen and rejected are the same; remove the record")
        chosen, rejected = (
            replace(chat, learned=[*[False] * shared, *chat.learned[shared:]])
            for chat in (chosen, rejected)
        )
        for name, chat in (("chosen", chosen), ("rejected", rejected)):
            if all(m["role"] != "assistant" for m in chat.messages[shared:]):
                raise BadRecord(
                    f"{where}: {name} has no answer after the turns that both share; add it"
                )
    elif chosen == rejected:
        raise BadRecord(f"{where}: chosen and rejected are the same; remove the record")
    return Preference(where, chosen, rejected)


def _answered(raw: dict[str, Any], name: str, where: str) -> Chat | Completion:
    """Return the prompt with one of its answers; messages may hold the prompt themselves."""
    if isinstance(_field(raw, name, where), list):
        answer, prompt = _list(raw, name, where), raw.get("prompt")
        if isinstance(prompt, list):
            answer = [*prompt, *answer]
        elif prompt is not None and isinstance(answer[0], dict) and _is_answer(answer[0]):
            answer = [{"role": "user", "content": _text(raw, "prompt", where)}, *answer]
        return _chat_of(answer, f"{where}: {name}", raw, where)
    return Completion(where, _text(raw, "prompt", where), _text(raw, name, where))


def _is_answer(turn: dict[str, Any]) -> bool:
    return ROLES.get(str(turn.get("role", turn.get("from")))) == "assistant"


def _shared_turns(one: list[Message], other: list[Message]) -> int:
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _completion(raw: dict[str, Any], where: str) -> Chat | Completion:
    if raw.get("label") is False:  # KTO's records, as TRL has them
        raise BadRecord(
            f"{where}: label is false, so the completion is a bad answer; remove the record, or "
            "give it as rejected, with a chosen answer, to trainer=dpo or orpo"
        )
    prompt, completion = _field(raw, "prompt", where), _field(raw, "completion", where)
    if isinstance(prompt, list) and isinstance(completion, list):
        before = [{**turn, "train": False} for turn in prompt if isinstance(turn, dict)]
        if len(before) != len(prompt):
            raise BadRecord(f"{where}: prompt holds what is no message; give JSON objects")
        return _chat_of([*before, *completion], f"{where}: prompt + completion", raw, where)
    text = _text(raw, "completion", where)
    return Completion(where, _text(raw, "prompt", where), text)


def _document(raw: dict[str, Any], where: str) -> Completion:
    return Completion(where, "", _text(raw, "text", where))


def _tokens(raw: dict[str, Any], where: str) -> Tokens:
    ids = _integers(raw, "input_ids", where)
    labels = _integers(raw, "labels", where) if "labels" in raw else list(ids)
    if len(labels) != len(ids):
        raise BadRecord(
            f"{where}: labels has {len(labels)} entries for {len(ids)} input_ids; give one each"
        )
    return Tokens(where, ids, labels)


_PARSERS: dict[str, Callable[[dict[str, Any], str], Record]] = {
    "chat": _chat,
    "sharegpt": _sharegpt,
    "tokens": _tokens,
    "alpaca": _alpaca,
    "preference": _preference,
    "completion": _completion,
    "text": _document,
}
# The keys by which a format is detected, in this order: some files also hold the rendered text.
_KEYS = {
    "chat": ("messages",),
    "sharegpt": ("conversations",),
    "tokens": ("input_ids",),
    "alpaca": ("instruction", "output"),
    "preference": ("chosen", "rejected"),
    "completion": ("prompt", "completion"),
    "text": ("text",),
}


def _chat_of(turns: list[Any], place: str, raw: dict[str, Any], where: str) -> Chat:
    messages: list[Message] = []
    learned: list[bool | None] = []
    if raw.get("system"):
        messages.append({"role": "system", "content": _text(raw, "system", where)})
        learned.append(None)
    for i, turn in enumerate(turns):
        message, is_learned = _message(turn, f"{place}[{i}]")
        if message["role"] == "system" and not message["content"].strip():
            continue
        messages.append(message)
        learned.append(is_learned)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise BadRecord(
            f"{place} has no assistant turn, so there is nothing to learn from; "
            "add the answer or remove the record"
        )
    if all(learned[i] is False for i in answers):
        raise BadRecord(
            f"{place}: train or weight turns off every assistant turn, so there is nothing to "
            "learn from; turn one on or remove the record"
        )
    return Chat(where, messages, learned, _tools(raw, where))


def _message(turn: Any, where: str) -> tuple[Message, bool | None]:
    """Return a message as templates take it, and whether the record wants it learned."""
    if not isinstance(turn, dict):
        raise BadRecord(f"{where}: {type(turn).__name__} where a JSON object is needed")
    turn = {key: value for key, value in turn.items() if value is not None}
    role_key, text_key = ("from", "value") if "from" in turn else ("role", "content")
    said = _field(turn, role_key, where)
    role = ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise BadRecord(f"{where}: {role_key} {said!r} is unknown; use one of {', '.join(ROLES)}")
    message: Message = {"role": role}
    if said == "function_call":
        calls = _json(_text(turn, text_key, where), f"{where}: {text_key}")
        message |= {"content": "", "tool_calls": _calls(calls, where)}
    elif "function_call" in turn:
        raise BadRecord(f"{where}: function_call is OpenAI's former key; write it as tool_calls")
    elif turn.get("tool_calls"):
        message |= {"content": _content(turn, text_key, where, may_be_empty=True)}
        message |= {"tool_calls": _calls(turn["tool_calls"], where)}
    else:
        # An empty system turn is no turn, and a tool may return nothing.
        may_be_empty = role in ("system", "tool")
        message |= {"content": _content(turn, text_key, where, may_be_empty=may_be_empty)}
    if role != "assistant" and "tool_calls" in message:
        raise BadRecord(f"{where}: tool_calls in a turn of {said!r}; only an assistant calls tools")
    message |= {key: _text(turn, key, where) for key in PASSED_ON if turn.get(key)}
    return message, _learned(turn, role, where)


def _learned(turn: dict[str, Any], role: str, where: str) -> bool | None:
    """Return what `train` or `weight` says about a message."""
    if "train" in turn and not isinstance(turn["train"], bool):
        raise BadRecord(f"{where}: train is {turn['train']!r}; it must be true or false")
    if "weight" in turn and turn["weight"] not in (0, 1):
        raise BadRecord(f"{where}: weight is {turn['weight']!r}; it must be 0 or 1")
    said = {bool(turn[key]) for key in ("train", "weight") if key in turn}
    if len(said) == 2:
        raise BadRecord(f"{where}: train and weight contradict each other; leave one out")
    learned = said.pop() if said else None
    if learned and role != "assistant":
        raise BadRecord(
            f"{where}: a turn of {role!r} cannot be learned by itself; remove its train or weight, "
            "or set data.train_on=all"
        )
    return learned


def _content(turn: dict[str, Any], key: str, where: str, *, may_be_empty: bool) -> str:
    """Return a message's text, its parts joined as the endpoint joins them."""
    value = turn.get(key, "") if may_be_empty else _field(turn, key, where)
    if isinstance(value, list):
        texts = [_part(part, f"{where}: {key}[{i}]") for i, part in enumerate(value)]
        value = "".join(texts)
    return _string(value, key, where, may_be_empty=may_be_empty)


def _part(part: Any, where: str) -> str:
    kind = _field(part, "type", where)
    if kind != "text":
        raise BadRecord(
            f"{where}: a part of type {kind!r}, but the model reads text alone; "
            "remove the part or the record"
        )
    return _string(_field(part, "text", where), "text", where, may_be_empty=True)


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Return tool calls in OpenAI's form, with arguments as an object: templates print it."""
    return [
        _call(call, f"{where}: tool_calls[{i}]")
        for i, call in enumerate(calls if isinstance(calls, list) else [calls])
    ]


def _call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise BadRecord(f"{where}: {type(call).__name__} where a JSON object is needed")
    function = call.get("function", call)
    name = _text(function, "name", where)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = _json(arguments, f"{where}: arguments")
    if not isinstance(arguments, dict):
        raise BadRecord(
            f"{where}: arguments is {type(arguments).__name__}; give a JSON object, or one as text"
        )
    identity = {"id": _text(call, "id", where)} if call.get("id") else {}
    return {**identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def _tools(raw: dict[str, Any], where: str) -> list[dict[str, Any]]:
    tools = raw.get("tools") or []
    if isinstance(tools, str):
        tools = _json(tools, f"{where}: tools")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRecord(f"{where}: tools must be a list of JSON schemas of functions")
    wrapped = [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in tools
    ]
    for i, tool in enumerate(wrapped):
        _text(tool["function"], "name", f"{where}: tools[{i}]")
    return wrapped


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRecord(
            f"{where}: not JSON ({error.msg}, column {error.colno}); correct it"
        ) from error


def _integers(raw: dict[str, Any], name: str, where: str) -> list[int]:
    value = _list(raw, name, where)
    if not all(type(token) is int for token in value):
        raise BadRecord(f"{where}: {name} must be a flat list of integers")
    return value


def _list(raw: dict[str, Any], name: str, where: str) -> list[Any]:
    value = _field(raw, name, where)
    if not isinstance(value, list) or not value:
        raise BadRecord(f"{where}: {name} must be a list with at least one entry")
    return value


def _text(raw: Any, name: str, where: str) -> str:
    return _string(_field(raw, name, where), name, where)


def _string(value: Any, name: str, where: str, *, may_be_empty: bool = False) -> str:
    """Return a text with line breaks as models know them."""
    if not isinstance(value, str):
        raise BadRecord(f"{where}: {name} is {type(value).__name__}; it must be a string")
    if not may_be_empty and not value.strip():
        raise BadRecord(f"{where}: {name} is empty; fill it or remove the record")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecord(
            f"{where}: {name} holds half of a surrogate pair at character {error.start}, which is "
            "no text; correct it or remove the record"
        ) from error
    return value.replace("\r\n", "\n")


def _field(raw: Any, name: str, where: str) -> Any:
    if not isinstance(raw, dict):
        raise BadRecord(f"{where}: {type(raw).__name__} where a JSON object is needed")
    if name not in raw:
        present = ", ".join(map(str, raw)) or "none"
        raise BadRecord(
            f"{where}: the key {name!r} is missing (keys here: {present}); "
            "add it, or set data.format to what the file holds"
        )
    return raw[name]
