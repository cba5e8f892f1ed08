"""Function calls: how a chat template writes them, and the grammar that holds an answer to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby, takewhile
from typing import Any

from llamahome.data import ChatError, ChatTemplate
from llamahome.engine.sampling.grammar import WHITESPACE
from llamahome.requests import CallFormat, Grammar, RequestError, Tools

# Enough for any task; a small model may otherwise repeat its call until the context is full.
MAX_CALLS = 32
# Keys next to which an object's properties are not all that it may have.
COMBINED = {"allOf", "anyOf", "oneOf", "$ref", "patternProperties", "if"}
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}

# Hermes' format (arXiv 2408.11857), which Qwen's models write too.
DEFAULT_FORMAT = CallFormat(
    opening='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    following='}\n</tool_call>\n<tool_call>\n{"name": "',
    closing="}\n</tool_call>",
)
DEFAULT_PROMPT = """You may call functions to answer. These are their signatures:
<tools>
{tools}
</tools>
To call a function, answer with its name and its arguments as JSON, in this form:
<tool_call>
{{"name": <function name>, "arguments": <arguments as a JSON object>}}
</tool_call>
The result comes back between <tool_response> and </tool_response>."""

# Words that no template writes, to find the places of names, arguments and texts in what it does.
_NAME, _OTHER, _TEXT = "probe_function", "other_function", "probe text"
_ARGUMENTS = {"probe_key": "probe value"}
_USER = {"role": "user", "content": "Hi"}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "A function.",
            "parameters": {
                "type": "object",
                "properties": {"probe_key": {"type": "string", "description": "A text."}},
                "required": ["probe_key"],
            },
        },
    }
    for name in (_NAME, _OTHER)
]


def find_format(template: ChatTemplate, control_tokens: Collection[str]) -> CallFormat | None:
    """Return how a template writes calls; None if it takes no tools, or in a way not known here.

    It is read off a rendered answer with one call, and one with two. A format that needs control
    tokens is not known here, since an answer's text has none of them.
    """
    try:
        if _NAME not in template.render([_USER], tools=_TOOLS):
            return None
        text = template.render([_USER, {"role": "assistant", "content": _TEXT}], tools=_TOOLS)
        one = template.render([_USER, _calling(_NAME)], tools=_TOOLS)
    except ChatError:
        return None
    head, _, ending = text.rpartition(_TEXT)
    if not head or not one.endswith(ending):
        return None
    shared = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(head, one, strict=False))
    )
    written = one[shared : len(one) - len(ending)].lstrip()
    parts = _split(written)
    if parts is None:
        return None
    opening, middle, closing = parts
    following = _following(template, middle, closing + ending)
    texts = (opening, middle, closing, following or "")
    if any(token in part for token in control_tokens for part in texts):
        return None
    return CallFormat(opening=opening, middle=middle, following=following, closing=closing)


def _calling(*names: str) -> dict[str, Any]:
    calls = [
        {
            "type": "function",
            "id": f"call0000{i}",  # nine letters or digits, as Mistral's templates want them
            "function": {"name": name, "arguments": _ARGUMENTS},
        }
        for i, name in enumerate(names)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _split(written: str) -> tuple[str, str, str] | None:
    """Return the texts before the name, between name and arguments, and after these."""
    opening, _, rest = written.partition(_NAME)
    place = _arguments_in(rest)
    if not opening or place is None or not place[0]:
        return None
    return opening, rest[: place[0]], rest[place[1] :]


def _arguments_in(text: str) -> tuple[int, int] | None:
    """Return where the arguments begin and end, if they are written as a JSON object."""
    decoder = json.JSONDecoder()
    for found in re.finditer(r"\{", text):
        try:
            value, end = decoder.raw_decode(text, found.start())
        except ValueError:
            continue
        if value == _ARGUMENTS:
            return found.start(), end
    return None


def _following(template: ChatTemplate, middle: str, tail: str) -> str | None:
    """Return the text between two calls; None for a template that writes one at most."""
    try:
        two = template.render([_USER, _calling(_NAME, _OTHER)], tools=_TOOLS)
    except ChatError:
        return None
    second, _, rest = two.rpartition(_OTHER + middle)
    start = second.rfind(_NAME + middle)
    place = _arguments_in(second[start:]) if start >= 0 else None
    if place is None or not rest.endswith(tail):
        return None
    return second[start + place[1] :]


def in_default_format(
    messages: Sequence[dict[str, Any]], offered: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Write tools, calls and results into plain messages, for a template without tools.

    Successive results become one message of the user, since many templates want turns to alternate.
    """
    plain = [_plain(message) for message in messages]
    grouped = groupby(plain, key=lambda message: message["role"])
    turns = [turn for role, run in grouped for turn in (_joined(run) if role == "tool" else run)]
    if not offered:
        return turns
    prompt = DEFAULT_PROMPT.format(tools="\n".join(json.dumps(tool) for tool in offered))
    if turns and turns[0]["role"] == "system":
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{prompt}"}, *turns[1:]]
    return [{"role": "system", "content": prompt}, *turns]


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose calls or result are part of its content."""
    if message["role"] == "tool":
        content = f"<tool_response>\n{message['content']}\n</tool_response>"
        return {"role": "tool", "content": content}
    if not message.get("tool_calls"):
        return message
    calls = [call["function"] for call in message["tool_calls"]]
    texts = [
        call["name"] + DEFAULT_FORMAT.middle + json.dumps(call["arguments"], ensure_ascii=False)
        for call in calls
    ]
    written = (DEFAULT_FORMAT.following or "").join(texts)
    content = f"{message['content']}\n" if message["content"] else ""
    content += DEFAULT_FORMAT.opening + written + DEFAULT_FORMAT.closing
    return {"role": message["role"], "content": content}


def _joined(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "\n".join(result["content"] for result in results)}]


def call_grammar(
    form: CallFormat, tools: Tools, answer: Grammar | None, literal: Callable[[str], str]
) -> Grammar:
    """Return the grammar of an answer that may, or must, call functions.

    Arguments keep to their JSON schema. Text is free until `form.marker` is complete; from there on
    nothing but a call can follow.

    Args:
        answer: the form of an answer that is no call; None leaves it free.
        literal: writes a text as a Lark expression.

    Raises:
        RequestError: when an answer of that form could be read as a call.
    """
    rules = [
        "%llguidance {}",
        f"start: {_start(form, tools, answer)}",
        f"calls: call {_further(form, tools)} closing",
        f"closing: {literal(form.closing)}",
        f"middle: {literal(form.middle)}",
        f"opening: {literal(form.opening)}",
        f"marker: {literal(form.marker)}",
        f"rest: {literal(form.opening[len(form.marker) :])}",
        f"call: {' | '.join(f'call_{i}' for i in range(len(tools.callable)))}",
        f"following: {literal(form.following or '')}",
        r"TEXT: /(.|\n)*/",
        r"NO_CALL: /([^" + re.escape(form.opening[0]) + r"](.|\n)*)?/",
        f"begun[lazy]: TEXT {json.dumps(form.marker)}",
    ]
    functions = {tool["function"]["name"]: tool["function"] for tool in tools.offered}
    for i, name in enumerate(tools.callable):
        arguments = _json_rule(functions[name].get("parameters") or NO_ARGUMENTS)
        rules.append(f"call_{i}: {json.dumps(name)} middle {arguments}")
    if answer is not None:
        rules.append(f"answer: %json {_json_answer(answer)}")
    return Grammar("lark", "\n".join(rules), "tools")


def _start(form: CallFormat, tools: Tools, answer: Grammar | None) -> str:
    if tools.required:
        return "opening calls"
    if answer is not None:
        if answer.kind != "json" or not form.marker:
            reason = "with tools, an answer can have this form only where calls are marked as such"
            raise RequestError(answer.source, None, f"{reason}; leave out one of the two")
        return "answer | opening calls"
    if not form.marker:
        return "NO_CALL | opening calls"
    # The second form is the marker as one added token, the third as the letters of one.
    return "TEXT | TEXT marker rest calls | begun rest calls"


def _further(form: CallFormat, tools: Tools) -> str:
    if form.following is None or not tools.parallel:
        return ""
    return f"(following call){{0,{MAX_CALLS - 1}}}"


def _json_answer(answer: Grammar) -> str:
    try:
        schema = json.loads(answer.text)
    except ValueError as error:
        raise RequestError(answer.source, None, f"no valid json: {error}") from error
    spaced = {"x-guidance": {"whitespace_pattern": WHITESPACE}}
    return json.dumps({**schema, **spaced} if isinstance(schema, dict) else schema)


def _json_rule(schema: dict[str, Any]) -> str:
    """Return the Lark expression of JSON, spaced as templates write it."""
    spacing = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return f"%json {json.dumps({**_closed(schema), 'type': 'object', 'x-guidance': spacing})}"


def _closed(schema: Any) -> Any:
    """Return a schema whose objects have the properties that it names, and no others.

    JSON Schema allows any others unless `additionalProperties` says no, and a small model writes
    them without end. A combination of schemas stays as it is: its parts may name properties apart.
    """
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    for key in ("properties", "$defs", "definitions"):
        if isinstance(schema.get(key), dict):
            closed[key] = {name: _closed(part) for name, part in schema[key].items()}
    for key in ("anyOf", "oneOf", "prefixItems"):
        if isinstance(schema.get(key), list):
            closed[key] = [_closed(part) for part in schema[key]]
    if "items" in schema:
        closed["items"] = _closed(schema["items"])
    if "properties" in schema and schema.keys().isdisjoint(COMBINED):
        closed.setdefault("additionalProperties", False)
    return closed
