"""OpenAI's client and /v1/responses, with a real engine and no Ray between."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from serve.http.stateful.store import MemoryStore
from tests.serve.one_replica import served

ASKED: dict[str, Any] = {
    "model": "tiny",
    "input": "Tell me a story.",
    "max_output_tokens": 12,
    "temperature": 0,
}
PET = {
    "type": "json_schema",
    "name": "pet",
    "schema": {
        "type": "object",
        "properties": {"kind": {"enum": ["cat", "dog"]}},
        "required": ["kind"],
        "additionalProperties": False,
    },
    "strict": True,
}
TIME = {"type": "function", "name": "get_time", "parameters": None, "strict": None}
EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


@pytest.fixture
async def client(tiny_model: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    store = MemoryStore(100_000, 60)
    async with (
        served(tiny_model, store=store) as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app)) as http,
    ):
        yield openai.AsyncOpenAI(
            base_url="http://test/v1", api_key="mine", max_retries=0, http_client=http
        )


async def test_a_stream_is_the_whole_answer_in_events_of_the_clients_types(client):
    whole = await client.responses.create(**ASKED, instructions="Be brief.")
    Response.model_validate(whole.to_dict())  # the client itself does not check
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert whole.usage.output_tokens == 12
    async with client.responses.stream(**ASKED, instructions="Be brief.") as stream:
        seen = [event async for event in stream]
    assert seen[-1].response.output_text == whole.output_text
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    kinds = [event.type.removeprefix("response.") for event in seen]
    opening = ["created", "in_progress", "output_item.added", "content_part.added"]
    closing = ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert (kinds[:4], kinds[-4:]) == (opening, closing)
    assert set(kinds[4:-4]) == {"output_text.delta"}
    raw = await client.responses.create(**ASKED, stream=True)
    for event in [event async for event in raw]:
        EVENT.validate_python(event.to_dict())


async def test_the_same_as_a_chat(client):
    answer = await client.responses.create(**ASKED, instructions="Be brief.")
    chat = await client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Tell me a story."},
        ],
        max_tokens=12,
        temperature=0,
    )
    assert answer.output_text == chat.choices[0].message.content


async def test_a_conversation_goes_on_from_its_snapshot(client):
    asked = {**ASKED, "max_output_tokens": 100}
    first = await client.responses.create(**asked, text={"format": PET})
    second = await client.responses.create(
        **{**ASKED, "input": "And then?"}, previous_response_id=first.id
    )
    items = [
        {"role": "user", "content": "Tell me a story."},
        *[item.to_dict() for item in first.output],
        {"role": "user", "content": "And then?"},
    ]
    alone = await client.responses.create(**{**ASKED, "input": items}, store=False)
    assert second.previous_response_id == first.id
    assert second.output_text == alone.output_text
    assert second.usage.input_tokens == alone.usage.input_tokens
    read = first.usage.input_tokens + first.usage.output_tokens - 1  # the last token has no entry
    assert second.usage.input_tokens_details.cached_tokens == read


async def test_a_kept_response_is_read_and_deleted_by_its_owner_alone(client):
    kept = await client.responses.create(**ASKED)
    other = client.with_options(api_key="another")
    assert (await client.responses.retrieve(kept.id)).output_text == kept.output_text
    for refused in (other.responses.retrieve(kept.id), other.responses.delete(kept.id)):
        with pytest.raises(openai.NotFoundError):
            await refused
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        await other.responses.create(**ASKED, previous_response_id=kept.id)
    await client.responses.delete(kept.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(kept.id)
    passing = await client.responses.create(**ASKED, store=False)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(passing.id)


async def test_a_schema_holds(client):
    asked = {**ASKED, "max_output_tokens": 100}
    answer = await client.responses.create(**asked, text={"format": PET})
    assert json.loads(answer.output_text)["kind"] in ("cat", "dog")
    assert answer.status == "completed"


async def test_logprobs_are_those_of_the_text(client):
    answer = await client.responses.create(
        **ASKED, include=["message.output_text.logprobs"], top_logprobs=2
    )
    logprobs = answer.output[0].content[0].logprobs
    assert len(logprobs) == 12
    assert all(len(token.top_logprobs) == 2 for token in logprobs)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_output_tokens": 5000}, "max_output_tokens"),
        ({"top_p": 7.0}, "top_p"),
        ({"background": True}, "background"),
        ({"extra_body": {"nonsense": 1}}, "nonsense"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [TIME, TIME]}, "tools.1.name"),
        ({"tools": [{**TIME, "parameters": {"$ref": "#/nowhere"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TIME], "tool_choice": {"type": "function", "name": 5}}, "tool_choice.name"),
        ({"input": [{"type": "function_call_output", "call_id": "secret", "output": "x"}]},
         "input.0.call_id"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "secret"}]},
         "input.0.arguments"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "secret"}]}]},
         "input.0.content.0"),
        ({"input": [{"type": "input_image", "image_url": "x"}]}, "input.0.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": 5}}}},
         "text.format"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_errors_name_the_clients_field(client, fields, param, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(**{**ASKED, **fields}, stream=stream)
    assert caught.value.param == param
    assert param in caught.value.message
    assert "secret" not in caught.value.response.text
