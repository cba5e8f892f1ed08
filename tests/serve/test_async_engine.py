from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing

import pytest

from llamahome.engine import QueueFullError, RequestError, SamplingParams
from serve.async_engine import AnswerError, AsyncEngine, EngineStoppedError


@pytest.fixture
def start(make_engine) -> Iterator[Callable[..., AsyncEngine]]:
    started = []

    def start(**settings) -> AsyncEngine:
        started.append(AsyncEngine(make_engine(**settings)))
        return started[-1]

    yield start
    for engine in started:
        engine.close()


async def collect(engine: AsyncEngine, request_id: str, prompt=(1,), max_tokens=4):
    params = SamplingParams(max_tokens=max_tokens)
    return [delta async for delta in engine.generate(request_id, list(prompt), params)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.005)


async def test_answers_come_whole_and_in_order(start):
    engine = start(slots=2)
    answers = await asyncio.gather(collect(engine, "a"), collect(engine, "b", max_tokens=7))
    texts = ["".join(delta.text for delta in deltas) for deltas in answers]
    assert texts == ["0 1 2 3 ", "0 1 2 3 4 5 6 "]
    assert [sum(d.token_count for d in deltas) for deltas in answers] == [4, 7]
    assert answers[0][-1].finish_reason == "length"
    assert answers[1][-1].usage.completion_tokens == 7


async def test_deltas_that_wait_are_given_as_one(start):
    engine = start()
    answer = engine.generate("a", [1], SamplingParams(max_tokens=20))
    await anext(answer)
    await until(lambda: engine.stats().requests_finished == 1)
    await asyncio.sleep(0)  # the loop takes in what the thread sent
    rest = [delta async for delta in answer]
    assert len(rest) == 1
    assert rest[0].text.endswith("18 19 ")


async def test_leaving_early_frees_the_slot(start):
    engine = start(slots=1, step_s=0.005, max_length=10_000)
    async with aclosing(engine.generate("a", [1], SamplingParams(max_tokens=9_000))) as answer:
        await anext(answer)
        assert engine.stats().slots_used == 1
    await until(lambda: engine.stats().slots_used == 0)
    assert len(await collect(engine, "b")) >= 1


async def test_a_cancelled_task_frees_its_place_in_the_queue(start):
    engine = start(slots=1, max_queued=1, step_s=0.005, max_length=10_000)
    tasks = [asyncio.create_task(collect(engine, name, max_tokens=9_000)) for name in "ab"]
    await until(lambda: engine.stats().queued == 1)
    tasks[1].cancel()
    await until(lambda: engine.stats().queued == 0)
    tasks[0].cancel()
    await until(lambda: engine.stats().slots_used == 0)


async def test_refusals_are_raised_where_the_request_was_made(start):
    engine = start(slots=1, max_queued=1, step_s=0.005, max_length=10_000)
    with pytest.raises(RequestError, match="context of 10000"):
        await collect(engine, "a", max_tokens=20_000)
    tasks = [asyncio.create_task(collect(engine, name, max_tokens=9_000)) for name in "bc"]
    await until(lambda: engine.stats().queued == 1)
    with pytest.raises(QueueFullError):
        await collect(engine, "d")
    for task in tasks:
        task.cancel()
    await until(lambda: engine.stats().slots_used == engine.stats().queued == 0)


async def test_one_bad_answer_leaves_the_others_alone(start):
    engine = start(slots=2, step_s=0.001)
    good = asyncio.create_task(collect(engine, "a"))
    with pytest.raises(AnswerError, match="not finite"):
        await collect(engine, "b", prompt=[14])
    assert (await good)[-1].finish_reason == "length"
    assert engine.running


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_crash_fails_every_request_and_later_ones(start):
    engine = start(slots=1, max_queued=2)
    waiting = [asyncio.create_task(collect(engine, name, prompt=[13])) for name in "ab"]
    results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
    assert [type(result) for result in results] == [EngineStoppedError] * 2
    assert "RuntimeError" in str(results[0])
    assert not engine.running
    with pytest.raises(EngineStoppedError):
        await collect(engine, "c")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_crash_at_the_door_is_told_to_the_request(start):
    engine = start()
    with pytest.raises(EngineStoppedError, match="TypeError"):
        await asyncio.wait_for(anext(engine.generate("a", None, SamplingParams())), 60)
    assert not engine.running


async def test_an_idle_engine_does_not_stall(start):
    engine = start()
    await collect(engine, "a")
    await until(lambda: engine.idle_s > 0)
    assert engine.stalled_s == 0


async def test_closing_ends_what_runs(start):
    engine = start(step_s=0.005, max_length=10_000)
    task = asyncio.create_task(collect(engine, "a", max_tokens=9_000))
    await until(lambda: engine.stats().slots_used == 1)
    await asyncio.to_thread(engine.close)
    with pytest.raises(EngineStoppedError, match="closed"):
        await task
