"""Anthropic's own client against the HTTP application, with a real engine and no Ray between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from llamahome.keys import digest
from serve.security.settings import SecuritySettings
from tests.serve.one_replica import served

MESSAGES = [{"role": "user", "content": "Tell me a story."}]
SECURED = SecuritySettings(api_key=digest("secret"))
ASKED: dict[str, Any] = {
    "model": "tiny",
    "messages": MESSAGES,
    "max_tokens": 12,
    "extra_body": {"temperature": 0},  # the client has left it out, the API has it
}
EVENT: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)


@pytest.fixture
async def client(tiny_model: Path) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with (
        served(tiny_model, settings={"security": SECURED}) as app,
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http,
    ):
        yield anthropic.AsyncAnthropic(
            base_url="http://test", api_key="secret", max_retries=0, http_client=http
        )


async def test_a_stream_is_the_whole_answer_in_events_of_the_clients_types(client):
    whole = await client.messages.create(**ASKED, system="Be brief.")
    Message.model_validate(whole.to_dict())  # the client itself does not check
    assert (whole.content[0].type, whole.stop_reason) == ("text", "max_tokens")
    assert whole.usage.output_tokens == 12
    kinds = []
    async with client.messages.stream(**ASKED, system="Be brief.") as stream:
        async for event in stream:
            kinds.append(event.type)
            if event.type != "text":
                EVENT.validate_python(event.to_dict())
        final = await stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert final.usage.output_tokens == 12
    read = final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0)
    assert read == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    plain = [kind for kind in kinds if kind != "text"]
    assert plain[:2] == ["message_start", "content_block_start"]
    assert set(plain[2:-3]) == {"content_block_delta"}
    assert plain[-3:] == ["content_block_stop", "message_delta", "message_stop"]


async def test_tokens_are_counted_as_a_message_has_them(client):
    blocks = [{"role": "user", "content": [{"type": "text", "text": "Tell me a story."}]}]
    system = [{"type": "text", "text": "Be brief."}]
    count = await client.messages.count_tokens(model="tiny", messages=blocks, system=system)
    answer = await client.messages.create(**ASKED, system="Be brief.")
    assert count.input_tokens == answer.usage.input_tokens


async def test_a_stop_sequence_is_named(client):
    text = (await client.messages.create(**ASKED)).content[0].text
    stopped = await client.messages.create(**ASKED, stop_sequences=["never", text[3:5]])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", text[3:5])
    assert stopped.content[0].text == text[: text.index(text[3:5])]


async def test_an_assistants_last_message_is_continued(client):
    begun = [*MESSAGES, {"role": "assistant", "content": "Once"}]
    answer = await client.messages.create(**ASKED)
    rest = await client.messages.create(**{**ASKED, "messages": begun})
    read = rest.usage.input_tokens + rest.usage.cache_read_input_tokens
    assert read == answer.usage.input_tokens + len("Once")  # one token for each character
    count = await client.messages.count_tokens(model="tiny", messages=begun)
    assert count.input_tokens == read


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model": "other"}, anthropic.NotFoundError, "no model 'other' here"),
        ({"max_tokens": 5000}, anthropic.BadRequestError, "max_tokens"),
        ({"extra_body": {"top_p": 7.0}}, anthropic.BadRequestError, "top_p=7.0"),
        ({"stop_sequences": [""]}, anthropic.BadRequestError, "stop_sequences"),
        ({"extra_body": {"nonsense": 1}}, anthropic.BadRequestError, "unknown field nonsense"),
    ],
)
async def test_errors_are_those_of_the_client(client, fields, error, message):
    named = {"X-Request-Id": "mine"}
    with pytest.raises(error, match=message) as caught:
        await client.messages.create(**{**ASKED, **fields}, extra_headers=named)
    assert caught.value.body["type"] == "error"
    assert caught.value.request_id == "mine"


async def test_a_wrong_key_is_an_authentication_error(client):
    stranger = client.with_options(api_key="wrong")
    with pytest.raises(anthropic.AuthenticationError) as caught:
        await stranger.messages.create(**ASKED)
    body: Any = caught.value.body
    assert body["error"]["type"] == "authentication_error"
