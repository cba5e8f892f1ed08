"""Events of an answer with a text and several calls."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from serve.http.bodies import checked
from serve.http.stateful.body import ResponsesBody
from serve.http.stateful.events import events
from serve.http.stateful.form import ResponseForm
from serve.wire import CallDelta, Delta


async def answer() -> AsyncGenerator[Delta, None]:
    yield Delta(text="Well", token_count=1)
    for index in range(2):
        first = CallDelta(index=index, arguments="", id=f"call_{index}", name="f")
        rest = CallDelta(index=index, arguments="{}")
        yield Delta(text="", token_count=1, calls=(first,))
        yield Delta(text="", token_count=1, calls=(rest,))
    yield Delta(text="", token_count=0, finish_reason="tool_calls")


async def test_a_text_and_several_calls_are_items_one_after_the_other():
    body = checked(ResponsesBody, '{"model": "m", "input": "x"}')
    kept = []

    async def keep(response: Any, whole: Delta) -> None:
        kept.append(response)

    form = ResponseForm(body, stored=True)
    found = [json.loads(text.split("data: ")[1]) async for text in events(form, keep, answer())]
    ended = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert [item["type"] for item in ended] == ["message", "function_call", "function_call"]
    assert [item.get("call_id") for item in ended] == [None, "call_0", "call_1"]
    added = [event for event in found if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in added] == [0, 1, 2]
    assert found[-1]["response"]["output"] == ended
    assert [item.to_dict() for item in kept[0].output] == ended
