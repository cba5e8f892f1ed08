"""Which replica a request goes to, under Ray Serve's own routing loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, RequestMetadata
from ray.serve._private.test_utils import FakeRunningReplica
from ray.serve.request_router import PendingRequest

from llamahome.requests import SamplingParams
from serve.catalog import Served
from serve.ray.prefixes import Published, prefix_of
from serve.ray.router import HELD, MODELS, PrefixRouter
from serve.wire import EmbedRequest, GenerateRequest

SYSTEM = {"role": "system", "content": "Be brief. " * 300}  # 3 KB: worth 1.5 requests
SLOTS = 4


class FakeReplica(FakeRunningReplica):
    """Ray's own stand-in, which has no routing stats."""

    def __init__(
        self, name: str, *, load: int = 0, held: bytes = b"", models: Sequence[Served] = ()
    ) -> None:
        super().__init__(name, max_ongoing_requests=8)
        self._held = held
        self._models = " ".join(model.key for model in models).encode()
        self.set_queue_len_response(load)

    @property
    def routing_stats(self) -> dict[str, Any]:
        return {HELD: self._held, MODELS: self._models}


def chat(name: str, *, turns: int = 1) -> GenerateRequest:
    asked = [
        {"role": role, "content": f"{name} {turn} " + "word " * 400}
        for turn in range(turns)
        for role in ("user", "assistant")
    ]
    return GenerateRequest(request_id=name, params=SamplingParams(), messages=[SYSTEM, *asked[:-1]])


class Routed:
    """A router over replicas; `send` returns the name of the one that gets a request."""

    def __init__(self, replicas: Sequence[FakeReplica]) -> None:
        self.router = PrefixRouter(
            DeploymentID(name="engine", app_name="app"),
            DeploymentHandleSource.REPLICA,
            use_replica_queue_len_cache=True,
        )
        self.router.initialize_state(slots=SLOTS)
        self.router.update_replicas(list(replicas))
        self._sent = 0

    async def send(self, request: Any, *, done: bool = True) -> str:
        self._sent += 1
        metadata = RequestMetadata(f"r{self._sent}", f"i{self._sent}")
        pending = PendingRequest(args=[request], kwargs={}, metadata=metadata)
        choice = self.router._choose_replica_for_request(pending)
        replica = await asyncio.wait_for(choice, 30)
        self.router.on_send_request(replica.replica_id)
        self.router.on_request_routed(pending, replica.replica_id, None)
        if done:
            self.router.decrement_queue_len_cache(replica.replica_id)
        return replica.replica_id.unique_id


def three() -> list[FakeReplica]:
    return [FakeReplica(name) for name in ("r1", "r2", "r3")]


async def settled(replicas: Sequence[FakeReplica]) -> Routed:
    """Return a router that has asked its replicas for their load."""
    routed = Routed(replicas)
    while any(routed.router.replica_queue_len_cache.get(r.replica_id) is None for r in replicas):
        await asyncio.sleep(0)
    return routed


async def test_every_turn_of_a_conversation_goes_to_one_replica() -> None:
    routed = await settled(three())
    for name in ("ada", "bob", "eve", "kim"):
        assert len({await routed.send(chat(name, turns=n)) for n in (1, 2, 3, 4)}) == 1


async def test_conversations_are_spread_when_replicas_are_busy() -> None:
    routed = await settled(three())
    homes = [await routed.send(chat(str(n)), done=False) for n in range(12)]
    assert sorted(homes.count(name) for name in ("r1", "r2", "r3")) == [4, 4, 4]


async def test_a_shared_beginning_is_worth_some_load_and_not_more() -> None:
    routed = await settled(three())
    home = await routed.send(chat("ada"), done=False)
    assert await routed.send(chat("bob"), done=False) == home  # 1 request against 1.5 of prompt
    assert await routed.send(chat("eve"), done=False) != home


async def test_a_holder_with_a_full_batch_more_than_others_is_passed_over() -> None:
    routed = await settled(three())
    home = await routed.send(chat("ada", turns=9))
    (holder,) = (r for r in routed.router.curr_replicas if r.unique_id == home)
    for _ in range(SLOTS + 1):
        routed.router.on_send_request(holder)
    assert await routed.send(chat("ada", turns=10)) != home


async def test_short_prompts_go_to_the_least_loaded() -> None:
    replicas = [FakeReplica("r1", load=3), FakeReplica("r2", load=1), FakeReplica("r3", load=2)]
    routed = await settled(replicas)
    prompt = GenerateRequest(request_id="a", params=SamplingParams(), prompt=[5, 6, 7])
    assert await routed.send(prompt) == "r2"
    assert await routed.send(EmbedRequest(request_id="b", prompt="x")) == "r2"


async def test_two_ingresses_agree_without_having_met() -> None:
    one, other = await settled(three()), await settled(three())
    for n in range(20):
        assert await one.send(chat(str(n))) == await other.send(chat(str(n)))


async def test_a_new_ingress_hears_from_replicas_what_they_have_read() -> None:
    published = Published()
    published.add(prefix_of(chat("ada")))
    names = ("r1", "r2", "r3")
    for holder in names:
        held = {holder: published.pack()}
        routed = await settled([FakeReplica(name, held=held.get(name, b"")) for name in names])
        assert await routed.send(chat("ada", turns=2)) == holder


async def test_a_holder_that_left_is_no_error() -> None:
    replicas = three()
    routed = await settled(replicas)
    home = await routed.send(chat("ada"))
    rest = [replica for replica in replicas if replica.replica_id.unique_id != home]
    routed.router.update_replicas(list(rest))
    assert await routed.send(chat("ada", turns=2)) != home
    assert home not in str(routed.router._holders._replicas)


async def test_a_full_replica_passes_the_request_on() -> None:
    replicas = [FakeReplica("r1", load=8), FakeReplica("r2", load=8), FakeReplica("r3", load=7)]
    routed = await settled(replicas)
    assert await routed.send(chat("ada")) == "r3"


async def test_a_request_waits_while_all_are_full() -> None:
    replicas = [FakeReplica("r1", load=8)]
    routed = await settled(replicas)
    sent = asyncio.create_task(routed.send(chat("ada")))
    while replicas[0].num_get_queue_len_calls < 3:
        await asyncio.sleep(0.01)
    assert not sent.done()
    replicas[0].set_queue_len_response(0)
    assert await sent == "r1"


@pytest.mark.parametrize("request_", [None, "text", 5])
async def test_calls_of_another_kind_are_routed_by_load(request_: Any) -> None:
    routed = await settled([FakeReplica("r1", load=1), FakeReplica("r2")])
    assert await routed.send(request_) == "r2"


SMALL, LARGE = (Served(name=name, root=name) for name in ("small", "large"))


def of_model(name: str, model: Served) -> GenerateRequest:
    params = SamplingParams()
    return GenerateRequest(request_id=name, params=params, prompt=name * 40, model=model)


async def test_a_request_goes_to_the_replica_that_holds_its_model() -> None:
    held = [(SMALL,), (SMALL, LARGE), (SMALL,)]
    replicas = [FakeReplica(f"r{n}", models=models) for n, models in enumerate(held)]
    routed = await settled(replicas)
    homes = {await routed.send(of_model(f"prompt {n}", LARGE)) for n in range(8)}
    assert homes == {"r1"}


async def test_a_model_spreads_once_its_holder_has_a_full_batch() -> None:
    replicas = [FakeReplica("r0", models=(SMALL, LARGE)), FakeReplica("r1", models=(SMALL,))]
    routed = await settled(replicas)
    first = [await routed.send(of_model(f"{n}", LARGE), done=False) for n in range(SLOTS)]
    assert set(first) == {"r0"}
    later = [await routed.send(of_model(f"later {n}", LARGE), done=False) for n in range(4)]
    assert later.count("r1") >= 3
    assert await routed.send(of_model("small", SMALL)) in ("r0", "r1")


async def test_two_models_with_the_same_prompt_have_nothing_in_common() -> None:
    small, large = (prefix_of(of_model("once", model)) for model in (SMALL, LARGE))
    assert small is not None
    assert large is not None
    assert not set(small.digests) & set(large.digests)
