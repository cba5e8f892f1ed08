"""Functions in /v1/messages, through Anthropic's client, with a real engine and no Ray between."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import httpx2
import jsonschema
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import BaseModel, TypeAdapter
from starlette.types import ASGIApp

from tests.serve.one_replica import serving
from tests.serve.test_tools import SCHEMA

WEATHER = {"name": "get_weather", "description": "Weather.", "input_schema": SCHEMA}
TIME = {"name": "get_time", "input_schema": {"type": "object"}}
QUESTION = {"role": "user", "content": "Weather?"}
ASKED: dict[str, Any] = {
    "model": "tiny",
    "messages": [QUESTION],
    "tools": [WEATHER, TIME],
    "tool_choice": {"type": "tool", "name": "get_weather"},
    "max_tokens": 300,
    "extra_body": {"temperature": 0},  # the client has left it out, the API has it
}
EVENT: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)


class Pet(BaseModel):
    kind: Literal["cat", "dog"]
    old: bool


@pytest.fixture(scope="module")
def app(tiny_model: Path) -> Iterator[ASGIApp]:
    with serving(tiny_model, max_length=2048) as application:
        yield application


@pytest.fixture
async def client(app: ASGIApp) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http:
        yield anthropic.AsyncAnthropic(
            base_url="http://test", api_key="mine", max_retries=0, http_client=http
        )


async def test_a_call_is_a_block(client):
    answer = await client.messages.create(**ASKED)
    Message.model_validate(answer.to_dict())  # the client itself does not check
    (block,) = answer.content
    assert (answer.stop_reason, block.type, block.name) == ("tool_use", "tool_use", "get_weather")
    jsonschema.validate(block.input, SCHEMA)


@pytest.mark.parametrize("kind", ["any", "auto", "none"])
async def test_a_choice_says_what_may_be_called(client, kind):
    choice = {"type": kind}
    if kind != "none":
        choice["disable_parallel_tool_use"] = True
    asked = {**ASKED, "tool_choice": choice, "max_tokens": 300 if kind == "any" else 12}
    answer = await client.messages.create(**asked)
    assert [block.type for block in answer.content] == ["tool_use" if kind == "any" else "text"]


async def test_a_streamed_call_is_the_whole_one(client):
    (whole,) = (await client.messages.create(**ASKED)).content
    async with client.messages.stream(**ASKED) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_message()
    (block,) = final.content
    assert (final.stop_reason, block.name, block.input) == ("tool_use", whole.name, whole.input)
    raw = await client.messages.create(**ASKED, stream=True)
    plain = [event async for event in raw]
    for event in plain:
        EVENT.validate_python(event.to_dict())
    kinds = [event.type for event in plain]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert plain[1].content_block.input == {}
    parts = [e.delta.partial_json for e in plain if e.type == "content_block_delta"]
    assert json.loads("".join(parts)) == whole.input
    assert any(event.type == "input_json" for event in events)


async def test_a_cut_call_has_what_had_come(client):
    whole = await client.messages.create(**ASKED)
    asked = {**ASKED, "max_tokens": whole.usage.output_tokens - 10}
    cut = await client.messages.create(**asked)
    assert cut.stop_reason == "max_tokens"
    assert cut.content[0].input.items() <= whole.content[0].input.items()
    async with client.messages.stream(**asked) as stream:
        assert (await stream.get_final_message()).content[0].input == cut.content[0].input


async def test_results_are_sent_back_and_counted(client):
    first = await client.messages.create(**ASKED)
    result = {"type": "tool_result", "tool_use_id": first.content[0].id}
    text = {"type": "text", "text": "And tomorrow?"}
    asked = {**ASKED, "tool_choice": {"type": "auto"}, "max_tokens": 8}
    lengths = []
    for content in ({"content": "rain"}, {"content": [{"type": "text", "text": "rain"}]},
                    {"content": "rain", "is_error": True}):  # fmt: skip
        messages = [
            QUESTION,
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [{**result, **content}, text]},
        ]
        answer = await client.messages.create(**{**asked, "messages": messages})
        read = answer.usage.input_tokens + answer.usage.cache_read_input_tokens
        count = await client.messages.count_tokens(
            model="tiny", messages=messages, tools=ASKED["tools"]
        )
        assert count.input_tokens == read
        lengths.append(read)
    plain, blocks, failed = lengths
    assert plain == blocks == failed - len("Error: ")  # one token for each character
    first_read = first.usage.input_tokens + first.usage.cache_read_input_tokens
    assert plain > first_read + first.usage.output_tokens


async def test_the_helper_parses_an_answer_by_its_schema(client):
    asked = {key: ASKED[key] for key in ("model", "messages", "extra_body")}
    answer = await client.messages.parse(**asked, max_tokens=300, output_format=Pet)
    assert answer.stop_reason == "end_turn"
    assert isinstance(answer.parsed_output, Pet)


async def test_the_tool_runner_calls_the_function(client):
    cities = []

    @anthropic.beta_async_tool
    async def get_weather(city: Literal["Rome", "Oslo"]) -> str:
        """Get the weather."""
        cities.append(city)
        return "sunny"

    asked = {key: ASKED[key] for key in ("model", "messages", "tool_choice", "extra_body")}
    runner = client.beta.messages.tool_runner(
        **asked, tools=[get_weather], max_tokens=100, max_iterations=2
    )
    reasons = [message.stop_reason async for message in runner]
    assert reasons == ["tool_use", "tool_use"]
    assert set(cities) <= {"Rome", "Oslo"}
    assert cities


def using(block: dict[str, Any], role: str = "assistant") -> dict[str, Any]:
    return {"role": role, "content": [block]}


USE = {"type": "tool_use", "id": "secret", "name": "get_time", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "secret", "content": "x"}


@pytest.mark.parametrize(
    ("fields", "start"),
    [
        ({"tools": [TIME, TIME]}, "tools.1.name: "),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type: "),
        ({"tools": [{**TIME, "input_schema": {"type": "string"}}]}, "tools.0.input_schema: "),
        ({"tools": [{**WEATHER, "input_schema": {"$ref": "#/nowhere"}}]}, "tools: "),
        ({"tools": [TIME]}, "tool_choice: "),  # it names the other
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name: "),
        ({"tool_choice": {"type": "any", "name": "get_time"}}, "tool_choice.name: "),
        ({"messages": [QUESTION, using(USE)]}, "messages.1: "),
        ({"messages": [using(USE, "user")]}, "messages.0.content.0: "),
        ({"messages": [using(RESULT)]}, "messages.0.content.0: "),
        ({"messages": [using(RESULT, "user")]}, "messages.0.content.0.tool_use_id: "),
        ({"messages": [using({"type": "image", "source": "secret"}, "user")]},
         "messages.0.content.0: images"),
        ({"messages": [using({"type": "thinking", "thinking": "secret"})]},
         "messages.0.content.0.type: "),
    ],
)  # fmt: skip
async def test_errors_name_the_clients_field_and_repeat_no_text(client, fields, start):
    with pytest.raises(anthropic.BadRequestError) as caught:
        await client.messages.create(**{**ASKED, **fields})
    message = caught.value.response.json()["error"]["message"]
    assert message.startswith(start)
    assert "secret" not in message
