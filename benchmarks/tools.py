"""Calls for questions of the Berkeley Function-Calling Leaderboard: are they what was asked for?

    python -m benchmarks.tools [--questions 36] [--model NAME] [--file RESULT]

Each question goes through the chat endpoint, in process, greedily, with `tool_choice: required`.
A call is valid when its arguments are JSON that keeps to the function's schema, which the
`jsonschema` package judges; `right_function` counts the calls of the function that the set expects,
which is up to the model. An answer that `max_tokens` cut is counted apart. The last line is JSON.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from importlib.metadata import distribution
from itertools import chain, zip_longest
from pathlib import Path
from typing import Annotated, Any

import httpx
import jsonschema
import openai
import typer

from benchmarks.record import write_result
from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from serve.http.api import build_app
from serve.http.errors import ApiError
from serve.http.settings import HttpSettings
from serve.replica import Replica
from serve.wire import Delta, Failure, ReplicaStats, Request

SETS = ("simple_python", "multiple", "live_simple")
# The set's names of types, which are Python's, and JSON Schema's.
TYPES = {"dict": "object", "float": "number", "tuple": "array"}
MAX_TOKENS = 512


class InProcess:
    """A backend that calls its replica itself."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        async for reply in self._replica.process_input(request):
            if isinstance(reply, Failure):
                raise ApiError(400, reply.message, param=reply.field)
            if isinstance(reply, Delta):
                yield reply

    async def replicas(self) -> Sequence[ReplicaStats]:
        return [await self._replica.stats()]


def main(
    questions: Annotated[int, typer.Option(help="Questions, from the sets in turn.")] = 36,
    model: Annotated[str, typer.Option(help="Model to ask.")] = ModelConfig().name,
    file: Annotated[Path | None, typer.Option(help="Where to write the result.")] = None,
) -> None:
    """Count the valid calls among the answers to a public set of questions."""
    asked = _questions(questions)
    counts = asyncio.run(_ask_all(asked, model))
    whole = counts["calls"] - counts["cut"]
    result = {
        "benchmark": "tools",
        "model": model,
        "sets": SETS,
        "questions": len(asked),
        **{name: counts[name] for name in ("calls", "cut", "valid", "right_function", "refused")},
        "valid_share": counts["valid"] / whole if whole else None,
    }
    if file is not None:
        write_result("tools", result, file)
    print(json.dumps(result))


def _questions(count: int) -> list[dict[str, Any]]:
    """Return questions of all sets in turn, each with the name of the function that it expects."""
    sets = [_read(name) for name in SETS]
    mixed = [one for one in chain.from_iterable(zip_longest(*sets)) if one is not None]
    return mixed[:count]


def _read(name: str) -> list[dict[str, Any]]:
    folder = Path(str(distribution("bfcl-eval").locate_file("bfcl_eval/data")))
    asked = (folder / f"BFCL_v4_{name}.json").read_text().splitlines()
    answers = (folder / "possible_answer" / f"BFCL_v4_{name}.json").read_text().splitlines()
    expected = {answer["id"]: answer["ground_truth"] for answer in map(json.loads, answers)}
    return [
        {**one, "expected": next(iter(expected[one["id"]][0]))} for one in map(json.loads, asked)
    ]


async def _ask_all(asked: list[dict[str, Any]], model: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    engine = EngineConfig(slots=1, max_length=4096)
    replica = Replica(ModelConfig(name=model), PolicyConfig(name="carried"), engine)
    settings = HttpSettings(
        model_id=model, created=0, request_timeout_s=600, max_body_bytes=10_000_000
    )
    transport = httpx.ASGITransport(build_app(InProcess(replica), settings))
    async with httpx.AsyncClient(transport=transport, timeout=600) as http:
        to_app: Any = http  # the client's types name another build of httpx
        client = openai.AsyncOpenAI(
            base_url="http://local/v1", api_key="none", max_retries=0, http_client=to_app
        )
        for question in asked:
            counts += await _ask(client, model, question)
    replica.close()
    return counts


async def _ask(client: openai.AsyncOpenAI, model: str, question: dict[str, Any]) -> Counter[str]:
    functions = {function["name"]: _json_schema(function) for function in question["function"]}
    tools: list[Any] = [{"type": "function", "function": f} for f in functions.values()]
    try:
        answer = await client.chat.completions.create(
            model=model,
            messages=question["question"][0],
            tools=tools,
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=0,
            max_tokens=MAX_TOKENS,
        )
    except openai.BadRequestError as error:
        print(f"{question['id']}: {error}")
        return Counter(refused=1)
    choice = answer.choices[0]
    counts: Counter[str] = Counter()
    for call in choice.message.tool_calls or ():
        assert call.type == "function"
        name, arguments = call.function.name, call.function.arguments
        counts += Counter(calls=1, right_function=int(name == question["expected"]))
        if choice.finish_reason == "length":
            counts["cut"] += 1
        elif _valid(arguments, functions[name]["parameters"]):
            counts["valid"] += 1
        else:
            print(f"{question['id']}: {name}({arguments})")
    return counts


def _json_schema(value: Any) -> Any:
    """Return a function of the set with JSON Schema's types; `any` is no restriction."""
    if isinstance(value, list):
        return [_json_schema(part) for part in value]
    if not isinstance(value, dict):
        return value
    converted = {key: _json_schema(part) for key, part in value.items()}
    kind = value.get("type")
    if kind == "any":
        del converted["type"]
    elif isinstance(kind, str):
        converted["type"] = TYPES.get(kind, kind)
    return converted


def _valid(arguments: str, schema: dict[str, Any]) -> bool:
    try:
        jsonschema.validate(json.loads(arguments), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


if __name__ == "__main__":
    typer.run(main)
