"""Names of wrong fields, where pydantic names branches of unions too."""

from __future__ import annotations

import json

import pytest

from serve.http.anthropic.body import MessagesBody
from serve.http.bodies import checked
from serve.http.errors import ApiError
from serve.http.protocol import ChatRequest, CompletionRequest
from serve.http.stateful.body import ResponsesBody

TURN = {"role": "user", "content": "Hi"}
FUNCTION = {"type": "function", "function": {"name": 5}}
IMAGE = {"role": "user", "content": [{"type": "input_image", "image_url": "secret"}]}
BASES: dict[type, dict] = {
    ChatRequest: {"messages": [TURN]},
    CompletionRequest: {},
    ResponsesBody: {"input": "Hi"},
    MessagesBody: {"messages": [TURN], "max_tokens": 5},
}


@pytest.mark.parametrize(
    ("kind", "fields", "param", "words"),
    [
        (ChatRequest, {"tool_choice": "secret"}, "tool_choice", "'none', 'auto' or 'required'"),
        (ChatRequest, {"tool_choice": FUNCTION}, "tool_choice.function.name", "valid string"),
        (ChatRequest, {"response_format": {"type": "secret"}}, "response_format.type", "one of"),
        (ChatRequest, {"response_format": {}}, "response_format.type", "has a type"),
        (ChatRequest, {"guided_json": 5}, "guided_json", "valid string; or: Input"),
        (ChatRequest, {"logit_bias": {"x": 1}}, "logit_bias.x", "valid integer"),
        (ChatRequest, {"stop": ""}, "stop", "at least 1 character"),
        (ChatRequest, {"x" * 5000: 1}, "x" * 64, "unknown field"),
        (CompletionRequest, {"prompt": ["a", {}]}, "prompt.1", "valid string; or: Input"),
        (ResponsesBody, {"input": [5]}, "input.0", "has a type"),
        (ResponsesBody, {"input": [{"type": "secret"}]}, "input.0.type", "one of"),
        (ResponsesBody, {"input": [{"role": "user"}]}, "input.0.content", "required"),
        (ResponsesBody, {"input": [IMAGE]}, "input.0.content.0", "images cannot be read"),
        (ResponsesBody, {"text": {"format": {"type": "json_schema", "name": 5}}},
         "text.format.name", "valid string"),
        (MessagesBody, {"system": 5}, "system", "valid string; or: Input"),
        (MessagesBody, {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
         "messages.0.content.0", "images cannot be read"),
    ],
)  # fmt: skip
def test_the_clients_field_is_named(kind, fields, param, words):
    body = {"model": "m", **BASES[kind], **fields}
    with pytest.raises(ApiError) as refused:
        checked(kind, json.dumps(body))
    error = refused.value
    assert (error.status, error.param) == (400, param)
    assert words in error.message
    assert "secret" not in error.message


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"model": "m", "model": ', "\ud800", "[" * 10_000]
)
def test_what_is_no_object_has_no_field(text):
    with pytest.raises(ApiError) as refused:
        checked(ChatRequest, text.encode(errors="surrogatepass"))
    assert (refused.value.status, refused.value.param) == (400, None)
