"""Calls of functions through foreign clients, with a real engine and no Ray between."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from llamahome.requests import RequestError
from tests.serve.test_openai_client import connected

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Oslo"]},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9}},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
SCHEMA["properties"]["days"]["maxItems"] = 3
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather.", "parameters": SCHEMA},
}
TIME = {"type": "function", "function": {"name": "get_time", "strict": True}}
ASKED: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Weather?"}],
    "tools": [WEATHER, TIME],
    "parallel_tool_calls": False,
    "max_tokens": 300,
}


class Forecast(BaseModel):
    """Read the forecast of a city."""

    city: Literal["Rome", "Oslo"]
    certain: bool


@pytest.fixture
async def client(tiny_model: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    async with connected(tiny_model, max_length=2048) as openai_client:
        yield openai_client


@pytest.mark.parametrize("seed", range(2))
async def test_an_answer_that_must_call_is_one_valid_call(client, seed):
    answer = await client.chat.completions.create(**ASKED, tool_choice="required", seed=seed)
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        jsonschema.validate(arguments, SCHEMA)
    else:
        assert (call.function.name, arguments) == ("get_time", {})


async def test_a_choice_by_name_is_that_function(client):
    for name in ("get_weather", "get_time"):
        choice = {"type": "function", "function": {"name": name}}
        answer = await client.chat.completions.create(**ASKED, tool_choice=choice, seed=1)
        assert [c.function.name for c in answer.choices[0].message.tool_calls] == [name]


async def test_several_calls_may_come_at_once(client):
    asked = {**ASKED, "parallel_tool_calls": True, "tools": [TIME], "n": 2}
    answer = await client.chat.completions.create(**asked, tool_choice="required", seed=1)
    counts = [len(choice.message.tool_calls) for choice in answer.choices]
    assert max(counts) > 1
    ids = [call.id for choice in answer.choices for call in choice.message.tool_calls]
    assert len(set(ids)) == sum(counts)


async def test_a_streamed_call_is_the_whole_one(client):
    asked = {**ASKED, "tool_choice": "required", "seed": 2}
    whole = await client.chat.completions.create(**asked)
    stream = await client.chat.completions.create(**asked, stream=True)
    choices = [chunk.choices[0] async for chunk in stream]
    deltas = [part for choice in choices for part in choice.delta.tool_calls or ()]
    head, *arguments = deltas
    (expected,) = whole.choices[0].message.tool_calls
    assert (head.index, head.type, head.function.name) == (0, "function", expected.function.name)
    assert head.id.startswith("call_")
    assert head.function.arguments == ""
    assert {(part.id, part.type, part.function.name) for part in arguments} == {(None, None, None)}
    assert "".join(p.function.arguments for p in arguments) == expected.function.arguments
    assert not any(choice.delta.content for choice in choices)
    assert [c.finish_reason for c in choices if c.finish_reason] == ["tool_calls"]
    assert choices[-1].delta.tool_calls is None


async def test_the_streaming_helper_parses_calls(client):
    tool = openai.pydantic_function_tool(Forecast)
    asked = {**ASKED, "tools": [tool], "tool_choice": "required"}
    async with client.chat.completions.stream(**asked) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Forecast)
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [event.arguments for event in done] == [call.function.arguments]


async def test_a_parsed_call_and_its_result_are_sent_back(client):
    tool = openai.pydantic_function_tool(Forecast)
    asked = {**ASKED, "tools": [tool], "tool_choice": "required"}
    first = await client.chat.completions.parse(**asked)
    message = first.choices[0].message
    (call,) = message.tool_calls
    assert isinstance(call.function.parsed_arguments, Forecast)
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    conversation = [*ASKED["messages"], message, result]
    again = {**asked, "messages": conversation, "tool_choice": "auto", "max_tokens": 8}
    answer = await client.chat.completions.create(**again)
    assert answer.usage.prompt_tokens > first.usage.prompt_tokens
    assert answer.choices[0].message.tool_calls is None


async def test_langchain_binds_tools_and_reads_structured_output(client):
    model = ChatOpenAI(
        model="tiny",
        base_url="http://test/v1",
        api_key="none",
        http_async_client=client._client,
        max_retries=0,
        max_completion_tokens=300,
    )
    bound = model.bind_tools([Forecast], tool_choice="any", parallel_tool_calls=False)
    message = await bound.ainvoke("Weather?")
    assert [call["name"] for call in message.tool_calls][:1] == ["Forecast"]
    assert message.invalid_tool_calls == []
    read = model.with_structured_output(Forecast, method="function_calling")
    assert isinstance(await read.ainvoke("Weather?"), Forecast)
    chunks = [c async for c in bound.astream("Weather?")]
    merged = sum(chunks[1:], chunks[0])
    Forecast.model_validate(merged.tool_calls[0]["args"])


async def test_an_answer_without_a_call_is_text(client):
    for choice in ("auto", "none"):
        asked = {**ASKED, "max_tokens": 12, "logprobs": True}
        answer = await client.chat.completions.create(**asked, tool_choice=choice, seed=1)
        (choice,) = answer.choices
        assert choice.message.tool_calls is None
        assert (choice.message.content, choice.finish_reason) != ("", "tool_calls")
        assert choice.logprobs.content


async def test_tools_take_room_of_the_prompt_unless_none_may_be_called(client):
    async def prompt_tokens(**fields: Any) -> int:
        asked = {**ASKED, "max_tokens": 1, **fields}
        return (await client.chat.completions.create(**asked)).usage.prompt_tokens

    assert await prompt_tokens() > await prompt_tokens(tool_choice="none")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{**TIME, "function": {"name": "f", "parameters": {"$ref": "#/se"}}}]}, "tools"),
        ({"extra_body": {"chat_template_kwargs": {"thinking": "secret"}}}, "chat_template_kwargs"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
          "extra_body": {"guided_regex": "secret"}}, "guided_regex"),
        ({"tools": None, "parallel_tool_calls": None, "extra_body": {"guided_regex": "(secret"}},
         "guided_regex"),
        ({"messages": [{"role": "user", "content": "secret" * 400}]}, "messages"),
        ({"temperature": -1}, "temperature"),
    ],
)  # fmt: skip
async def test_errors_name_the_clients_field_and_repeat_no_text(client, fields, param):
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(**{**ASKED, **fields})
    assert refused.value.param == param
    message = refused.value.response.json()["error"]["message"]
    assert message.startswith((f"{param}: ", f"{param}=-1"))
    assert "secret" not in message


async def test_an_empty_text_to_embed_is_refused_by_the_clients_name(client):
    with pytest.raises(openai.BadRequestError, match="input: ") as refused:
        await client.embeddings.create(model="tiny", input="")
    assert refused.value.param == "input"
    assert "prompt" not in refused.value.response.json()["error"]["message"].partition(":")[0]


def test_numbers_are_repeated_and_texts_are_not():
    assert RequestError("max_tokens", 0, "too few").for_client("max_tokens") == (
        "max_tokens=0: too few"
    )
    assert RequestError("grammar", "secret", "bad").for_client("tools") == "tools: bad"
