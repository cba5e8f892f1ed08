"""Several models in one replica process, over engines that count."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import pytest

from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.models import ModelError
from llamahome.requests import SamplingParams
from serve.catalog import Served
from serve.host import Host
from serve.replica import Replica
from serve.wire import Delta, Failure, GenerateRequest, Reply

FIRST, SECOND, THIRD = (
    Served(name=name, root=name, model=ModelConfig(name=name)) for name in ("a", "b", "c")
)


class Loads:
    """Makes replicas of engines that count, and notes which."""

    def __init__(self, make_engine: Any) -> None:
        self.engines: list[tuple[str, Any]] = []
        self.broken: set[str] = set()
        self._make_engine = make_engine

    def __call__(
        self, model: ModelConfig, policy: PolicyConfig, engine: EngineConfig, **options: Any
    ) -> Replica:
        if model.name in self.broken:
            raise ModelError(f"{model.name} at /secret is damaged")
        made = self._make_engine(max_length=10_000, step_s=0.001)
        made.policy = policy
        self.engines.append((model.name, made))
        return Replica(model, policy, engine, engine_factory=lambda *_: made, **options)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.engines]

    @property
    def open(self) -> list[str]:
        return [name for name, engine in self.engines if not engine.closed]


@pytest.fixture
def loads(make_engine: Any) -> Loads:
    return Loads(make_engine)


@pytest.fixture
def make_host(loads: Loads) -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(**options: Any) -> Host:
        made.append(Host(FIRST, load=loads, **options))
        return made[-1]

    yield make
    for host in made:
        host.close()


def ask(host: Host, served: Served | None, tokens: int = 2) -> AsyncGenerator[Reply, None]:
    name = "first" if served is None else served.key
    params = SamplingParams(max_tokens=tokens)
    return host.process_input(
        GenerateRequest(request_id=f"{name}-{tokens}", params=params, prompt="x", model=served)
    )


async def answer(host: Host, served: Served | None, tokens: int = 2) -> list[Reply]:
    return [reply async for reply in ask(host, served, tokens)]


def text(replies: list[Reply]) -> str:
    return "".join(reply.text for reply in replies if isinstance(reply, Delta))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_model_is_loaded_when_it_is_first_asked_for(make_host, loads):
    host = make_host(max_models=2)
    assert loads.names == ["a"]
    for served in (None, SECOND, FIRST, SECOND):
        assert text(await answer(host, served)) == "0 1 "
    assert loads.names == ["a", "b"]


async def test_requests_that_come_together_load_a_model_once(make_host, loads):
    host = make_host(max_models=2)
    answers = await asyncio.gather(*(answer(host, SECOND, n) for n in (1, 2)))
    assert [text(replies) for replies in answers] == ["0 ", "0 1 "]
    assert loads.names == ["a", "b"]


async def test_the_least_recently_used_model_leaves(make_host, loads):
    host = make_host(max_models=2)
    for served in (SECOND, FIRST, THIRD):
        await answer(host, served)
    await until(lambda: sorted(loads.open) == ["a", "c"])
    await answer(host, SECOND)
    assert loads.names == ["a", "b", "c", "b"]


async def test_a_model_in_use_is_not_dropped_under_a_stream(make_host, loads):
    host = make_host(max_models=1, room_wait_s=60)
    stream = ask(host, FIRST, 2000)
    assert isinstance(await anext(stream), Delta)
    waiting = asyncio.create_task(answer(host, SECOND))
    await answer(host, FIRST)  # others of the model in memory are answered meanwhile
    assert loads.open == ["a"]
    rest = [reply async for reply in stream]
    assert isinstance(rest[-1], Delta)
    assert rest[-1].finish_reason == "length"
    assert text(await waiting) == "0 1 "
    await until(lambda: loads.open == ["b"])


async def test_a_request_for_which_no_room_is_made_is_refused(make_host):
    host = make_host(max_models=1, room_wait_s=0.01)
    stream = ask(host, FIRST, 2000)
    await anext(stream)
    [refused] = await answer(host, SECOND)
    assert isinstance(refused, Failure)
    assert (refused.kind, "serve.max_models" in refused.message) == ("full", True)
    await stream.aclose()
    assert text(await answer(host, SECOND)) == "0 1 "


async def test_a_model_that_cannot_be_loaded_fails_its_own_requests_and_tells_no_path(
    make_host, loads
):
    host = make_host(max_models=2)
    loads.broken = {"b"}
    [failed] = await answer(host, SECOND)
    assert isinstance(failed, Failure)
    assert (failed.kind, "/secret" in failed.message) == ("failed", False)
    assert text(await answer(host, FIRST)) == "0 1 "
    loads.broken = set()  # mended: the next request tries again
    assert text(await answer(host, SECOND)) == "0 1 "


def promoted(revision: int) -> Served:
    model = ModelConfig(name=f"a{revision}")
    return Served(name="a", root=model.name, model=model, revision=revision)


async def test_a_new_version_is_loaded_ahead_and_the_old_one_ends_its_streams(make_host, loads):
    host = make_host(max_models=1)
    stream = ask(host, FIRST, 2000)
    await anext(stream)
    assert await host.hold(promoted(1)) is None
    assert loads.open == ["a", "a1"]  # two versions count as one model
    await host.retire("a", 1)
    assert text(await answer(host, promoted(1))) == "0 1 "
    assert loads.names == ["a", "a1"]
    rest = [reply async for reply in stream]
    assert isinstance(rest[-1], Delta)
    assert rest[-1].finish_reason == "length"
    await until(lambda: loads.open == ["a1"])


async def test_a_late_answer_of_an_old_version_ends_under_it(make_host, loads):
    """Another replica was lost, and one of its answers goes on here."""
    host = make_host(max_models=1)
    await host.hold(promoted(1))
    await host.retire("a", 1)
    await until(lambda: loads.open == ["a1"])
    assert text(await answer(host, FIRST)) == "0 1 "
    await until(lambda: loads.open == ["a1"])


async def test_a_version_that_cannot_be_loaded_says_why_and_changes_nothing(make_host, loads):
    host = make_host(max_models=1)
    loads.broken = {"a1"}
    assert await host.hold(promoted(1)) == "a1 at /secret is damaged"
    assert text(await answer(host, FIRST)) == "0 1 "
    assert loads.open == ["a"]


async def test_the_figures_are_of_each_model_and_of_all(make_host):
    host = make_host(max_models=2, name="r1")
    await answer(host, SECOND)
    stats = await host.stats()
    assert (stats.replica, stats.running, stats.engine.slots) == ("r1", True, 4)
    assert [(model.name, model.engine.slots) for model in stats.models] == [("a", 2), ("b", 2)]
    assert stats.engine.requests_finished == 1


async def test_an_engine_that_hangs_makes_the_process_unhealthy(make_host, loads):
    host = make_host(max_models=2, stall_s=0.01)
    await host.check_health()
    await answer(host, SECOND)
    hangs = threading.Event()
    loads.engines[1][1].hangs = hangs
    stream = asyncio.create_task(answer(host, SECOND))
    replica = host._replicas()[1][1]
    await until(lambda: replica._async_engine.stalled_s > 0.01)
    with pytest.raises(Exception, match="hangs"):
        await host.check_health()
    hangs.set()
    await stream
