"""The reports of an engine replica to the router and the autoscaler."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from functools import partial
from typing import Any

import pytest

from llamahome.requests import SamplingParams
from serve.catalog import Served
from serve.ray.prefixes import prefix_of, unpack
from serve.ray.reporting import ReportingReplica
from serve.ray.router import HELD
from serve.ray.scaling import METRICS
from serve.replica import Replica
from serve.wire import Delta, Failure, GenerateRequest, Reply


@pytest.fixture
def replica(make_engine: Any) -> Iterator[ReportingReplica]:
    """A replica of an engine that counts, one request at a time."""
    engine = make_engine(slots=1, step_s=0.001, max_length=4096)
    load = partial(Replica, engine_factory=lambda *_: engine)
    made = ReportingReplica(Served(name="tiny", root="tiny"), load=load)
    yield made
    made.close()


def request(name: str, max_tokens: int) -> GenerateRequest:
    params = SamplingParams(max_tokens=max_tokens)
    return GenerateRequest(request_id=name, params=params, prompt=f"{name} upon a time")


def answer(replica: ReportingReplica, asked: GenerateRequest) -> AsyncGenerator[Reply, None]:
    return replica.process_input(asked)


async def test_open_requests_are_load_until_their_clients_leave(replica: ReportingReplica) -> None:
    assert replica.record_autoscaling_stats() == dict.fromkeys(METRICS, 0)
    first = answer(replica, request("one", 3000))
    assert isinstance(await anext(first), Delta)
    load = replica.record_autoscaling_stats()
    assert load["requests"] == 1
    assert load["ttft_s"] > 0
    await first.aclose()
    replies = [reply async for reply in replica.process_input(request("two", 10))]
    assert isinstance(replies[-1], Delta)
    assert replies[-1].finish_reason == "length"
    assert replica.record_autoscaling_stats()["requests"] == 0


async def test_what_was_read_is_published(replica: ReportingReplica) -> None:
    asked = request("once", 2)
    async for _ in replica.process_input(asked):
        pass
    prefix = prefix_of(asked)
    assert prefix is not None
    assert list(unpack(replica.record_routing_stats()[HELD])) == list(prefix.digests)


async def test_a_request_that_is_refused_was_not_read(replica: ReportingReplica) -> None:
    replies = [reply async for reply in replica.process_input(request("long", 10_000))]
    assert [type(reply) for reply in replies] == [Failure]
    assert replica.record_routing_stats()[HELD] == b""
    assert replica.record_autoscaling_stats()["ttft_s"] == 0
