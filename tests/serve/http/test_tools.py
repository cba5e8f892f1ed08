from __future__ import annotations

import json

import pytest

from llamahome.requests import Tools
from serve.http.bodies import checked
from serve.http.errors import ApiError
from serve.http.protocol import ChatRequest
from serve.wire import GenerateRequest

USER = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}
F = {"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": True}}
G = {"type": "function", "function": {"name": "g", "description": "Do g."}}


def request(**fields) -> GenerateRequest:
    body = {"model": "m", "messages": [USER], "tools": [F, G], **fields}
    return checked(ChatRequest, json.dumps(body)).generate_requests("id", None)[0]


def choice(name: str) -> dict:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict:
    tools = [choice(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize(
    ("fields", "callable_", "required", "parallel"),
    [
        ({}, ("f", "g"), False, True),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, ("f", "g"), False, False),
        ({"tool_choice": "required", "parallel_tool_calls": True}, ("f", "g"), True, True),
        ({"tool_choice": choice("g")}, ("g",), True, False),
        ({"tool_choice": allowed("auto", "g")}, ("g",), False, True),
        ({"tool_choice": allowed("required", "g", "f")}, ("g", "f"), True, True),
    ],
)
def test_a_choice_says_what_an_answer_may_call(fields, callable_, required, parallel):
    offered = [
        {"type": "function", "function": {"name": "f", "parameters": SCHEMA}},
        {"type": "function", "function": {"name": "g", "description": "Do g."}},
    ]
    expected = Tools(offered=offered, callable=callable_, required=required, parallel=parallel)
    assert request(**fields).tools == expected


@pytest.mark.parametrize(
    "fields", [{"tool_choice": "none"}, {"tools": []}, {"tools": None, "tool_choice": "auto"}]
)
def test_an_answer_without_tools(fields):
    assert request(**fields).tools is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "custom"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name"),
        ({"tools": [choice("a b")]}, "tools.0.function.name"),
        ({"tools": [choice("f")] * 129}, "tools"),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"type": "a"}}}
                ]
            },
            "tools.0.function.parameters",
        ),
        ({"tools": [F, F]}, "tools.1.function.name"),
        ({"tool_choice": choice("h")}, "tool_choice"),
        ({"tool_choice": allowed("auto", "f", "h")}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": choice("f")}, "tool_choice"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ],
)
def test_wrong_tools_are_refused_by_field(fields, param):
    with pytest.raises(ApiError) as refused:
        request(**fields)
    error = refused.value
    assert (error.status, error.param) == (400, param)
    assert param in error.message
