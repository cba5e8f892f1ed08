"""Answers on lines between a replica and an ingress, over real sockets."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from llamahome.requests import SamplingParams
from serve.catalog import Served
from serve.ray.backend import ServeBackend
from serve.ray.mailbox import SECRET_BYTES, DirectCall, DirectCalls, Mailbox
from serve.ray.recovery import Deadlines
from serve.ray.reporting import ReportingReplica
from serve.replica import Replica
from serve.wire import LENGTH_BYTES, Delta, GenerateRequest, Origin, ReplyTo

NO_HANDLE: Any = None  # it is only asked for stats
PATIENT = Deadlines(first_token_s=600.0, token_s=600.0)


class Calls:
    """Stands in for Serve: starts `answer` in this process, and can lose its result."""

    def __init__(self, replica: ReportingReplica) -> None:
        self.replica = replica
        self.tasks: list[asyncio.Task[None]] = []
        self.to: list[ReplyTo] = []

    def remote(
        self, request: GenerateRequest, to: ReplyTo, origin: Origin | None
    ) -> asyncio.Task[None]:
        self.to.append(to)
        self.tasks.append(asyncio.create_task(self.replica.answer(request, to, origin)))
        return self.tasks[-1]


@pytest.fixture
def engine(make_engine: Any) -> Any:
    return make_engine(slots=8, max_queued=64, step_s=0.001, max_length=100_000)


@pytest.fixture
def replica(engine: Any) -> Iterator[ReportingReplica]:
    load = partial(Replica, engine_factory=lambda *_: engine)
    made = ReportingReplica(Served(name="tiny", root="tiny"), load=load)
    yield made
    made.close()


@asynccontextmanager
async def listening(*replicas: ReportingReplica) -> AsyncIterator[Mailbox]:
    """Yield a mailbox; afterwards the replicas have seen that it is closed."""
    mailbox = Mailbox()
    await mailbox.start("127.0.0.1")
    try:
        yield mailbox
    finally:
        mailbox.close()
        for replica in replicas:
            for made in replica._lines._lines.values():
                line = await made
                await until(lambda line=line: line.lost)


def request(name: str, max_tokens: int) -> GenerateRequest:
    params = SamplingParams(max_tokens=max_tokens)
    return GenerateRequest(request_id=name, params=params, prompt=name)


async def drained(call: DirectCall) -> None:
    while True:
        await call.next(600)


async def until(condition: Any) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.001)


async def test_answers_share_a_line_and_each_message_has_many(
    replica: ReportingReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(replica) as mailbox:
        messages: list[tuple[int, object]] = []
        deliver = mailbox.deliver

        def noting(replies: Any, line: object) -> None:
            messages.append((len(replies), line))
            deliver(replies, line)

        monkeypatch.setattr(mailbox, "deliver", noting)
        calls = Calls(replica)
        backend = ServeBackend(NO_HANDLE, DirectCalls(calls, mailbox), PATIENT)

        async def text(name: str) -> str:
            return "".join([d.text async for d in backend.stream(request(name, 50))])

        texts = await asyncio.gather(*(text(str(i)) for i in range(8)))
        assert texts == ["".join(f"{n} " for n in range(50))] * 8
        assert len({line for _, line in messages}) == 1
        assert max(count for count, _ in messages) >= 8  # all requests of a step
        await asyncio.gather(*calls.tasks)


async def test_a_client_that_leaves_frees_the_slot(replica: ReportingReplica, engine: Any) -> None:
    async with listening(replica) as mailbox:
        calls = Calls(replica)
        answer = ServeBackend(NO_HANDLE, DirectCalls(calls, mailbox), PATIENT).stream(
            request("left", 90_000)
        )
        await anext(answer)
        await answer.aclose()
        await until(lambda: engine.cancelled == ["left"])
        assert calls.tasks[0].cancelled()


async def test_a_lost_ingress_frees_the_slots_of_all_its_requests(
    replica: ReportingReplica, engine: Any
) -> None:
    async with listening(replica) as mailbox:
        calls = Calls(replica)
        started = [DirectCalls(calls, mailbox).remote(request(name, 90_000)) for name in "ab"]
        for call in started:
            assert isinstance(await call.next(600), Delta)
        line: Any = started[0]._answer.line
        line.hang_up()
        await until(lambda: sorted(engine.cancelled) == ["a", "b"])
        # An ingress that is there after all hears of it at once.
        for call in started:
            with pytest.raises(ConnectionResetError):
                await drained(call)
        assert isinstance(
            await DirectCalls(calls, mailbox).remote(request("c", 9)).next(600), Delta
        )


async def test_a_call_that_fails_without_a_word_fails_the_answer(replica: ReportingReplica) -> None:
    class Dead:
        async def died(self) -> None:
            raise ActorDiedError

        def remote(
            self, request: GenerateRequest, to: ReplyTo, origin: Origin | None
        ) -> asyncio.Task[None]:
            return asyncio.create_task(self.died())

    async with listening() as mailbox:
        call = DirectCalls(Dead(), mailbox).remote(request("a", 1))
        with pytest.raises(ActorDiedError):
            await call.next(600)


@pytest.mark.parametrize("given", ["wrong", "short"])
async def test_a_stranger_is_not_read(given: str) -> None:
    async with listening() as mailbox:
        answer = mailbox.open()
        message = pickle.dumps([(answer.to.number, Delta(text="forged", token_count=1))])
        framed = len(message).to_bytes(LENGTH_BYTES) + message
        secret = b"x" * SECRET_BYTES if given == "wrong" else answer.to.secret[:-1]
        reader, writer = await asyncio.open_connection(answer.to.host, answer.to.port)
        writer.write(secret + framed)
        assert await reader.read() == b""  # hung up
        writer.close()
        assert not answer._arrived


async def test_a_message_may_come_in_pieces() -> None:
    async with listening() as mailbox:
        answer = mailbox.open()
        delta = Delta(text="a", token_count=1)
        message = pickle.dumps([(answer.to.number, delta), (answer.to.number, None)])
        _, writer = await asyncio.open_connection(answer.to.host, answer.to.port)
        for byte in answer.to.secret + len(message).to_bytes(LENGTH_BYTES) + message:
            writer.write(bytes([byte]))
            await writer.drain()
        assert await answer.next(600) == delta
        with pytest.raises(StopAsyncIteration):
            await answer.next(600)
        writer.close()


async def test_an_ingress_that_is_not_there_is_an_error(replica: ReportingReplica) -> None:
    async with listening() as mailbox:
        to = mailbox.open().to
    for _ in range(2):  # and the next request tries again
        with pytest.raises(OSError, match="ports between the nodes"):
            await replica.answer(request("a", 1), replace(to, number=1))


async def test_each_wait_has_its_own_limit() -> None:
    async with listening() as mailbox:
        answer = mailbox.open()
        deltas = [Delta(text=text, token_count=1) for text in "ab"]
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, answer.put, deltas[0])
        assert await answer.next(600) == deltas[0]
        with pytest.raises(TimeoutError):
            await answer.next(0.01)  # shorter than what is left of the first
        answer.put(deltas[1])
        assert await answer.next(0.01) == deltas[1]
        with pytest.raises(TimeoutError):
            await answer.next(0.01)


def test_the_secret_is_not_shown() -> None:
    assert "secret" not in repr(ReplyTo(host="h", port=1, secret=b"hidden", number=0))
