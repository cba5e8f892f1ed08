"""A caller that dies takes its answers with it, and nobody else's."""

from __future__ import annotations

import asyncio

import pytest
import ray

from serve.ray.callers import Callers, is_alive


class Waiting:
    """Answers that wait for ever, as tasks of one `Callers`."""

    def __init__(self) -> None:
        self.dead: set[str] = set()
        self.callers = Callers(lambda name: name not in self.dead, period_s=0.001)

    async def answer(self, caller: str | None) -> None:
        with self.callers.answering(caller):
            await asyncio.Event().wait()

    def begin(self, caller: str | None) -> asyncio.Task[None]:
        return asyncio.create_task(self.answer(caller))


async def test_the_answers_of_a_caller_that_died_end_and_others_go_on():
    waiting = Waiting()
    lost = [waiting.begin("a") for _ in range(3)]
    kept = [waiting.begin("b"), waiting.begin(None)]
    await asyncio.sleep(0)
    waiting.dead.add("a")
    async with asyncio.timeout(60):
        await asyncio.wait(lost)
    assert all(task.cancelled() for task in lost)
    assert not any(task.done() for task in kept)
    waiting.dead.add("b")  # the watch goes on for those that are left
    async with asyncio.timeout(60):
        await asyncio.wait(kept[:1])
    kept[1].cancel()


async def test_a_caller_that_comes_after_an_idle_time_is_watched_too():
    waiting = Waiting()
    for name in ("a", "b"):
        task = waiting.begin(name)
        await asyncio.sleep(0)
        waiting.dead.add(name)
        async with asyncio.timeout(60):
            await asyncio.wait([task])
        assert task.cancelled()


@pytest.mark.parametrize(
    ("answer", "alive"),
    [(ValueError("no such actor"), False), (ray.exceptions.RpcError("late", 14), True)],
    ids=["unknown to Ray", "Ray does not answer"],
)
def test_only_ray_itself_declares_a_caller_dead(monkeypatch, answer, alive):
    def get_actor(name: str, namespace: str) -> None:
        raise answer

    monkeypatch.setattr(ray, "get_actor", get_actor)
    assert is_alive("ingress") is alive
