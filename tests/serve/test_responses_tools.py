"""Functions in /v1/responses, through OpenAI's client, with a real engine and no Ray between."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from starlette.types import ASGIApp

from serve.http.stateful.store import MemoryStore
from tests.serve.one_replica import serving
from tests.serve.test_tools import SCHEMA

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather.",
    "parameters": SCHEMA,
    "strict": True,
}
TIME: dict[str, Any] = {"type": "function", "name": "get_time", "parameters": {}, "strict": False}
ASKED: dict[str, Any] = {
    "model": "tiny",
    "input": "Weather?",
    "tools": [WEATHER, TIME],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_output_tokens": 300,
    "temperature": 0,
}
EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


class Forecast(BaseModel):
    """Read the forecast of a city."""

    city: Literal["Rome", "Oslo"]
    certain: bool


@pytest.fixture(scope="module")
def app(tiny_model: Path) -> Iterator[ASGIApp]:
    with serving(tiny_model, store=MemoryStore(1_000_000, 600), max_length=2048) as application:
        yield application


@pytest.fixture
async def client(app: ASGIApp) -> AsyncIterator[openai.AsyncOpenAI]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as http:
        yield openai.AsyncOpenAI(
            base_url="http://test/v1", api_key="mine", max_retries=0, http_client=http
        )


async def test_a_call_is_an_item_of_the_output(client):
    asked = {**ASKED, "tool_choice": {"type": "function", "name": "get_weather"}}
    answer = await client.responses.create(**asked)
    Response.model_validate(answer.to_dict())  # the client itself does not check
    (call,) = answer.output
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    jsonschema.validate(json.loads(call.arguments), SCHEMA)
    assert answer.status == "completed"
    assert [tool.to_dict() for tool in answer.tools] == [WEATHER, TIME]
    assert answer.tool_choice.to_dict() == asked["tool_choice"]
    assert answer.parallel_tool_calls is False


async def test_a_streamed_call_has_openais_events(client):
    whole = await client.responses.create(**ASKED)
    async with client.responses.stream(**ASKED) as stream:
        seen = [event async for event in stream]
        final = await stream.get_final_response()
    (call,) = final.output
    assert (call.name, call.arguments) == (whole.output[0].name, whole.output[0].arguments)
    kinds = [event.type.removeprefix("response.") for event in seen]
    assert kinds[:3] == ["created", "in_progress", "output_item.added"]
    assert set(kinds[3:-3]) <= {"function_call_arguments.delta"}
    assert kinds[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]
    added, done = seen[2].item, seen[-2].item
    assert (added.call_id, added.arguments, added.status) == (call.call_id, "", "in_progress")
    assert (done.call_id, done.arguments, done.status) == (
        call.call_id,
        call.arguments,
        "completed",
    )
    raw = await client.responses.create(**ASKED, stream=True)
    events = [event async for event in raw]
    for event in events:
        EVENT.validate_python(event.to_dict())
    deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments


async def test_a_cut_call_is_incomplete(client):
    asked = {**ASKED, "tool_choice": {"type": "function", "name": "get_weather"}}
    whole = await client.responses.create(**asked)
    few = {**asked, "max_output_tokens": whole.usage.output_tokens - 20}
    raw = await client.responses.create(**few, stream=True)
    last = [event async for event in raw][-1]
    (call,) = last.response.output
    assert (last.type, call.status) == ("response.incomplete", "incomplete")
    assert whole.output[0].arguments.startswith(call.arguments)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "sent"])
async def test_results_are_sent_back(client, kept):
    first = await client.responses.create(**ASKED)
    result = {
        "type": "function_call_output",
        "call_id": first.output[0].call_id,
        "output": [{"type": "input_text", "text": "sunny"}],
    }
    asked = {**ASKED, "tool_choice": "auto", "max_output_tokens": 8}
    if kept:
        asked |= {"input": [result], "previous_response_id": first.id}
    else:
        asked["input"] = [{"role": "user", "content": "Weather?"}, *first.output, result]
    answer = await client.responses.create(**asked)
    (message,) = answer.output
    assert message.type == "message"
    assert answer.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens


async def test_a_kept_conversation_is_the_sent_one(client):
    first = await client.responses.create(**ASKED)
    result = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "sun"}
    asked = {**ASKED, "tool_choice": "auto", "max_output_tokens": 8}
    kept = await client.responses.create(
        **{**asked, "input": [result]}, previous_response_id=first.id
    )
    items = [{"role": "user", "content": "Weather?"}, *first.output, result]
    sent = await client.responses.create(**{**asked, "input": items})
    assert kept.usage.input_tokens == sent.usage.input_tokens
    assert kept.output_text == sent.output_text


async def test_the_helper_parses_calls_which_can_be_sent_back(client):
    asked = {**ASKED, "tools": [openai.pydantic_function_tool(Forecast)]}
    answer = await client.responses.parse(**asked)
    (call,) = answer.output
    assert isinstance(call.parsed_arguments, Forecast)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    items = [{"role": "user", "content": "Weather?"}, *answer.output, result]
    asked |= {"input": items, "tool_choice": "none", "max_output_tokens": 8}
    assert (await client.responses.parse(**asked)).output[0].type == "message"
