from __future__ import annotations

import asyncio
import dataclasses
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.requests import EngineError, Grammar, Progress, SamplingParams
from serve.async_engine import EngineStoppedError
from serve.replica import Replica
from serve.wire import Accepted, EmbedRequest, GenerateRequest


@pytest.fixture
def make_replica(make_engine) -> Iterator[Callable[..., Replica]]:
    made = []

    def make(**settings: Any) -> Replica:
        replica = Replica(
            ModelConfig(),
            PolicyConfig(),
            EngineConfig(),
            name="r1",
            engine_factory=lambda model, policy, engine: make_engine(**settings),
        )
        made.append(replica)
        return replica

    yield make
    for replica in made:
        replica.close()


def of_engine(engine: Any, **options: Any) -> Replica:
    return Replica(
        ModelConfig(), PolicyConfig(), EngineConfig(), engine_factory=lambda *_: engine, **options
    )


async def until_it_raises(call: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.timeout(120):
        while True:
            await call()
            await asyncio.sleep(0.005)


async def replies(replica: Replica, **fields: Any) -> list[Any]:
    """Collect the replies to a request; fields that are not the request's are its params'."""
    of_request = {"request_id": "a"}
    own = {field.name for field in dataclasses.fields(GenerateRequest)}
    for name in own & set(fields):
        of_request[name] = fields.pop(name)
    request = GenerateRequest(params=SamplingParams(**{"max_tokens": 3, **fields}), **of_request)
    return [reply async for reply in replica.process_input(request)]


@pytest.mark.parametrize(
    "prompt",
    [
        {"prompt": "ab"},
        {"prompt": [97, 98]},
        {"messages": [{"role": "user", "content": "ab"}]},
    ],
    ids=["text", "token ids", "messages"],
)
async def test_process_input_answers_text_tokens_and_messages(make_replica, prompt):
    answer = await replies(make_replica(), **prompt)
    assert "".join(delta.text for delta in answer) == "0 1 2 "
    assert answer[-1].usage.prompt_tokens == 2


async def test_sampling_reaches_the_engine(make_engine):
    engine = make_engine()
    replica = Replica(
        ModelConfig(), PolicyConfig(), EngineConfig(), engine_factory=lambda *_: engine
    )
    await replies(replica, prompt="a", temperature=0.5, top_p=0.9, seed=7, stop=("x",))
    replica.close()
    params = engine.requests["a"][1]
    assert (params.temperature, params.top_p, params.seed, params.stop) == (0.5, 0.9, 7, ("x",))


async def test_every_sampling_field_reaches_the_engine(make_engine):
    engine = make_engine()
    replica = Replica(
        ModelConfig(), PolicyConfig(), EngineConfig(), engine_factory=lambda *_: engine
    )
    fields = {
        "min_tokens": 1,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {7: 1.0},
        "logprobs": 2,
        "stop_token_ids": (3,),
        "ignore_eos": True,
        "kv_budget": 128,
        "kv_policy": "h2o",
        "priority": -1,
        "adapter": "x",
    }
    await replies(replica, prompt="a", grammar=Grammar("regex", "a+", "guided_regex"), **fields)
    replica.close()
    params = engine.requests["a"][1]
    assert {name: getattr(params, name) for name in fields} == fields
    assert params.grammar == Grammar("regex", "a+", "guided_regex")
    assert (params.echo, params.prompt_logprobs) == (None, None)


@pytest.mark.parametrize("prompt", ["ab", [97, 98]], ids=["text", "token ids"])
async def test_echo_has_the_prompts_text_and_logprobs(make_engine, prompt):
    engine = make_engine()
    replica = Replica(
        ModelConfig(), PolicyConfig(), EngineConfig(), engine_factory=lambda *_: engine
    )
    await replies(replica, prompt=prompt, echo=True, logprobs=1, prompt_logprobs=1)
    replica.close()
    params = engine.requests["a"][1]
    assert (params.echo, params.logprobs, params.prompt_logprobs) == ("ab", 1, 1)


async def test_a_wrong_grammar_has_the_clients_name_for_it(make_replica):
    grammar = Grammar("regex", "(", "structured_outputs.regex")
    (failure,) = await replies(make_replica(), prompt="a", grammar=grammar)
    assert (failure.kind, failure.field) == ("invalid", "structured_outputs.regex")


@pytest.mark.parametrize("prompt", ["ab", [97, 98]], ids=["text", "token ids"])
async def test_an_embedding_is_one_delta_of_float32(make_replica, prompt):
    request = EmbedRequest(request_id="a", prompt=prompt)
    (delta,) = [reply async for reply in make_replica().process_input(request)]
    assert struct.unpack("<2f", delta.embedding) == (97.0, 98.0)
    assert (delta.text, delta.token_count, delta.usage.prompt_tokens) == ("", 0, 2)


async def test_what_cannot_be_embedded_is_the_input(make_replica):
    request = EmbedRequest(request_id="a", prompt=[])
    (failure,) = [reply async for reply in make_replica().process_input(request)]
    assert (failure.kind, failure.field) == ("invalid", "input")


async def test_closing_closes_the_engine(make_engine):
    engine = make_engine()
    Replica(ModelConfig(), PolicyConfig(), EngineConfig(), engine_factory=lambda *_: engine).close()
    assert engine.closed


async def test_a_system_prompt_reaches_the_engine_as_protected(make_engine):
    engine = make_engine()
    replica = Replica(
        ModelConfig(), PolicyConfig(), EngineConfig(), engine_factory=lambda *_: engine
    )
    system = {"role": "system", "content": "short"}
    await replies(replica, messages=[system, {"role": "user", "content": "hi"}])
    replica.close()
    assert engine.requests["a"][1].protected == 5


async def test_the_models_defaults_stand_in_for_what_the_client_left_out(make_engine):
    engine = make_engine(defaults={"temperature": 0.6, "top_p": 0.9})
    replica = Replica(
        ModelConfig(), PolicyConfig(), EngineConfig(), engine_factory=lambda *_: engine
    )
    await replies(replica, prompt="a", temperature=1.0, left_out=frozenset({"top_p"}))
    replica.close()
    params = engine.requests["a"][1]
    assert (params.temperature, params.top_p) == (1.0, 0.9)


async def test_the_end_of_the_prompt_is_as_asked(make_engine):
    engine = make_engine()
    replica = Replica(
        ModelConfig(), PolicyConfig(), EngineConfig(), engine_factory=lambda *_: engine
    )
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well"}]
    await replies(replica, messages=messages)
    ending = {"add_generation_prompt": False, "continue_final_message": True}
    await replies(replica, messages=messages, **ending)
    replica.close()
    assert engine.endings == [(True, False), (False, True)]


async def test_no_max_tokens_takes_what_the_context_has_left(make_replica):
    answer = await replies(make_replica(max_length=10), prompt="abcd", max_tokens=None)
    assert answer[-1].usage.completion_tokens == 6


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"prompt": "a", "max_tokens": 400}, "max_tokens", "400"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages", "must be the user's"),
    ],
    ids=["too long", "template"],
)
async def test_a_request_that_cannot_run_is_refused_by_field(make_replica, fields, field, words):
    (failure,) = await replies(make_replica(), **fields)
    assert (failure.kind, failure.field) == ("invalid", field)
    assert words in failure.message


async def test_a_full_queue_is_said_so(make_replica):
    replica = make_replica(slots=1, max_queued=0, step_s=0.005, max_length=10_000)
    running = replica.process_input(
        GenerateRequest(request_id="b", prompt="a", params=SamplingParams(max_tokens=9_000))
    )
    await anext(running)
    (failure,) = await replies(replica, prompt="a")
    assert failure.kind == "full"
    await running.aclose()
    async with asyncio.timeout(120):
        while (await replica.stats()).engine.slots_used:
            await asyncio.sleep(0.005)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_crash_fails_the_health_check_and_sends_later_requests_elsewhere(make_replica):
    replica = make_replica()
    await replica.check_health()
    assert (await replies(replica, prompt=[13]))[-1].kind == "crashed"
    with pytest.raises(EngineStoppedError, match="r1"):
        await replica.check_health()
    assert not (await replica.stats()).running
    assert (await replies(replica, prompt="a"))[-1].kind == "unavailable"


async def test_a_step_that_does_not_end_fails_the_health_check_and_later_requests(make_engine):
    hangs = threading.Event()
    replica = of_engine(make_engine(hangs=hangs), stall_s=0.01)
    running = asyncio.create_task(replies(replica, request_id="b", prompt="a"))
    with pytest.raises(EngineStoppedError, match="hangs"):
        await until_it_raises(replica.check_health)
    (failure,) = await replies(replica, prompt="a")
    assert failure.kind == "unavailable"
    hangs.set()
    assert (await running)[-1].finish_reason == "length"
    replica.close()


async def test_grammars_are_prepared_once_the_engine_is_idle(make_engine):
    engine = make_engine()
    replica = of_engine(engine)
    assert not engine.prepared
    async with asyncio.timeout(120):
        while not engine.prepared:
            await replica.check_health()
            await asyncio.sleep(0.005)
    replica.close()


async def test_an_idle_engine_shows_that_it_can_generate(make_engine):
    engine = make_engine()
    replica = of_engine(engine, probe_after_s=0.0)
    async with asyncio.timeout(120):
        while not engine.finished:
            await replica.check_health()
            await asyncio.sleep(0.005)
    (prompt, params) = next(iter(engine.requests.values()))
    assert (len(prompt), params.max_tokens) == (1, 1)
    replica.close()


@pytest.mark.parametrize(
    "fault", [{"hangs": threading.Event()}, {"broken": True}], ids=["hangs", "broken"]
)
async def test_an_idle_engine_that_cannot_generate_is_unhealthy(make_engine, fault):
    replica = of_engine(make_engine(**fault), probe_after_s=0.0, stall_s=0.01)
    with pytest.raises(EngineError, match=r"hangs|not finite"):
        await until_it_raises(replica.check_health)
    for event in fault.values():
        if isinstance(event, threading.Event):
            event.set()
    replica.close()


async def test_an_answer_that_another_replica_began_is_accepted_and_goes_on(make_replica):
    progress = Progress(tokens=(0, 1))
    accepted, *deltas = await replies(make_replica(), prompt="ab", progress=progress, max_tokens=4)
    assert accepted == Accepted()
    assert "".join(delta.text for delta in deltas) == "2 3 "


async def test_the_real_engine_answers_the_same_each_time(tiny_model):
    replica = Replica(
        ModelConfig(name=str(tiny_model)),
        PolicyConfig(budget=32, recent=16, interval=8),
        EngineConfig(slots=2, max_length=256, num_threads=1),
    )
    messages = [{"role": "user", "content": "Say something long. " * 5}]
    fields = {"messages": messages, "temperature": 0.0, "max_tokens": 20}
    first = await replies(replica, request_id="a", **fields)
    second = await replies(replica, request_id="b", **fields)
    replica.close()
    assert "".join(d.text for d in first) == "".join(d.text for d in second)
    usage = first[-1].usage
    assert usage.evicted_tokens > 0
    assert usage.kv_bytes < usage.kv_bytes_dense
