from __future__ import annotations

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from serve.http.errors import ApiError
from serve.http.invalid import invalid_body
from serve.http.messages import Message, for_template

MESSAGES = TypeAdapter(list[Message])
USER = {"role": "user", "content": "Hi"}


def call(identity: str, arguments: str = "{}", **more) -> dict:
    function = {"name": "f", "arguments": arguments, **more}
    return {"id": identity, "type": "function", "function": function}


def calling(*calls: dict, **more) -> dict:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **more}


def converted(*messages: dict) -> list[dict]:
    return for_template(MESSAGES.validate_json(json.dumps(messages)))


def test_calls_and_results_reach_the_template():
    answer = calling(call("1", '{"x": 2}', parsed_arguments=None), refusal=None, parsed=None)
    result = {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "ok"}]}
    function = {"name": "f", "arguments": {"x": 2}}
    assert converted(USER, answer, result) == [
        USER,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "ok", "tool_call_id": "1", "name": "f"},
    ]
    assert converted(calling(call("1", "")))[0]["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize(
    ("message", "param", "words"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "secret"}}]},
            "0.content.0",
            "images cannot be read here",
        ),
        (
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
            "0.content.0",
            "audio cannot be read here",
        ),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, "0.content.0", "files"),
        ({"role": "user", "content": [{"type": "secret"}]}, "0.content.0.type", "text"),
        ({"role": "user", "content": 5}, "0.content", "array"),
        ({"role": "user", "content": None}, "0.content", "needs a text"),
        ({"role": "user"}, "0.content", "needs a text"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "0.content", "needs a text"),
        ({**USER, "tool_calls": [call("1")]}, "0.tool_calls", "only an assistant's"),
        ({**USER, "tool_call_id": "1"}, "0.tool_call_id", "role tool"),
        (calling(call("1", "[secret")), "0.tool_calls.0.function.arguments", "JSON object"),
        (calling(call("1", "[]")), "0.tool_calls.0.function.arguments", "JSON object"),
        (
            {"role": "tool", "content": "x", "tool_call_id": "9"},
            "messages.0.tool_call_id",
            "an earlier assistant's message",
        ),
        ({"role": "tool", "content": "x"}, "messages.0.tool_call_id", "must be the id"),
    ],
)
def test_wrong_messages_are_refused_by_field(message, param, words):
    with pytest.raises((ValidationError, ApiError)) as refused:
        converted(message)
    found = refused.value
    error = invalid_body(found, [message]) if isinstance(found, ValidationError) else found
    assert isinstance(error, ApiError)
    assert (error.status, error.param) == (400, param)
    assert words in error.message
    assert "secret" not in error.message
