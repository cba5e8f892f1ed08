from __future__ import annotations

import json

import pytest
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsBase as ChatParams,
)
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsStreaming as ChatStreamingParams,
)
from openai.types.completion_create_params import (
    CompletionCreateParamsBase,
    CompletionCreateParamsStreaming,
)
from pydantic import ValidationError

from serve.errors import invalid_body
from serve.protocol import ChatRequest, CompletionRequest

USER = {"role": "user", "content": "Hi"}


def chat(**fields) -> ChatRequest:
    body = {"model": "m", "messages": [USER], **fields}
    return ChatRequest.model_validate_json(json.dumps(body))


def completion(**fields) -> CompletionRequest:
    body = {"model": "m", "prompt": "Hi", **fields}
    return CompletionRequest.model_validate_json(json.dumps(body))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ChatRequest, (ChatParams, ChatStreamingParams)),
        (CompletionRequest, (CompletionCreateParamsBase, CompletionCreateParamsStreaming)),
    ],
    ids=["chat", "completion"],
)
def test_every_field_of_the_openai_client_is_known(ours, theirs):
    sent = set().union(*(params.__annotations__ for params in theirs))
    assert sent - set(ours.model_fields) == set()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("n", True),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"5": 1}),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -1),
        ("reasoning_effort", "high"),
        ("modalities", ["audio"]),
        ("store", True),
        ("audio", {"voice": "x"}),
    ],
)
def test_what_is_not_supported_is_refused_by_name(field, value):
    with pytest.raises(ValidationError) as refused:
        chat(**{field: value})
    error = invalid_body(refused.value)
    assert (error.status, error.param, error.code) == (400, field, "unsupported")
    assert field in error.message


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n", [None, 1]),
        ("logprobs", [None, False]),
        ("tools", [None, []]),
        ("tool_choice", [None, "none", "auto"]),
        ("response_format", [None, {"type": "text"}]),
        ("logit_bias", [None, {}]),
        ("presence_penalty", [None, 0, 0.0]),
        ("store", [None, False]),
        ("metadata", [None, {"team": "a"}]),
        ("user", [None, "u1"]),
        ("stream_options", [None, {"include_usage": True}]),
    ],
)
def test_values_that_ask_for_nothing_special_are_accepted(field, values):
    for value in values:
        chat(**{field: value})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temprature": 1}, "temprature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{**USER, "colour": 1}]}, "messages.0.colour"),
        ({"messages": [{**USER, "name": "Ada"}]}, "messages.0.name"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop.0"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_a_wrong_body_names_the_field(fields, param):
    with pytest.raises(ValidationError) as refused:
        chat(**fields)
    assert invalid_body(refused.value).param == param


def test_the_value_of_a_wrong_field_is_not_repeated():
    with pytest.raises(ValidationError) as refused:
        chat(messages=[{"role": "user", "content": ["secret"]}])
    assert "secret" not in invalid_body(refused.value).message


def test_messages_reach_the_template_as_plain_text():
    request = chat(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}] * 2},
            {"role": "assistant", "content": "b", "refusal": None, "tool_calls": None},
        ]
    ).generate_request("id")
    assert request.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "aa"},
        {"role": "assistant", "content": "b"},
    ]


def test_sampling_and_limits_become_a_request():
    request = chat(max_completion_tokens=7, seed=3, stop="x").generate_request("id")
    assert (request.max_tokens, request.seed, request.stop) == (7, 3, ("x",))
    assert (request.temperature, request.top_p) == (1.0, 1.0)
    assert chat(temperature=0, top_p=0.5).generate_request("id").temperature == 0
    assert chat().generate_request("id").max_tokens is None
    assert completion().generate_request("id").max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("Hi", "Hi"), (["Hi"], "Hi"), ([1, 2], [1, 2]), ([[1, 2]], [1, 2])],
    ids=["text", "list of text", "token ids", "list of token ids"],
)
def test_one_prompt_in_each_of_its_forms(prompt, expected):
    assert completion(prompt=prompt).generate_request("id").prompt == expected


@pytest.mark.parametrize("prompt", [["a", "b"], [[1], [2]], [[1, "a"]], {"a": 1}, None])
def test_other_prompts_are_refused(prompt):
    with pytest.raises(ValidationError) as refused:
        completion(prompt=prompt)
    assert (invalid_body(refused.value).param or "").startswith("prompt")
