"""Beginnings that requests have in common, in the three forms that a prompt has."""

from __future__ import annotations

from typing import Any

import pytest

from llamahome.requests import SamplingParams
from serve.ray.prefixes import CUTS, Holders, Published, prefix_of, unpack
from serve.wire import EmbedRequest, GenerateRequest

SYSTEM = {"role": "system", "content": "Be brief. " * 50}
ASK = {"role": "user", "content": "Name three rivers."}
ANSWER = {"role": "assistant", "content": "Rhine, Elbe, Oder."}
MORE = {"role": "user", "content": "And three more?"}


def request(**fields: Any) -> GenerateRequest:
    params = fields.pop("params", SamplingParams())
    return GenerateRequest(request_id="a", params=params, **fields)


def common(first: GenerateRequest, second: GenerateRequest) -> int:
    """Return how much of the second a replica has read that read the first."""
    holders = Holders()
    before, after = prefix_of(first), prefix_of(second)
    assert before is not None
    assert after is not None
    holders.add("r", before.digests)
    return holders.matched(after).get("r", 0)


def length(given: GenerateRequest) -> int:
    prefix = prefix_of(given)
    assert prefix is not None
    return prefix.marks[-1][0]


def test_the_next_turn_of_a_chat_has_all_of_the_one_before() -> None:
    first, second = request(messages=[SYSTEM, ASK]), request(messages=[SYSTEM, ASK, ANSWER, MORE])
    assert common(first, second) == length(first)
    assert common(second, second) == length(second)


def test_a_long_chat_is_known_by_its_newest_turns() -> None:
    first = request(messages=[SYSTEM, *[ASK, ANSWER] * 500])
    second = request(messages=[SYSTEM, *[ASK, ANSWER] * 500, MORE])
    assert common(first, second) == length(first)
    prefix = prefix_of(second)
    assert prefix is not None
    assert len(prefix.marks) <= 32 + len(CUTS) + 1


def test_chats_that_share_a_system_prompt_have_most_of_it() -> None:
    other = request(messages=[SYSTEM, MORE])
    shared = len(str(SYSTEM))
    assert 0.8 * shared <= common(request(messages=[SYSTEM, ASK]), other) <= shared


@pytest.mark.parametrize("ids", [False, True], ids=["text", "token ids"])
@pytest.mark.parametrize("size", [200, 5000, 100_000])
def test_prompts_that_begin_alike(ids: bool, size: int) -> None:
    text = "".join(chr(97 + i * i % 26) for i in range(size))
    first: Any = [ord(c) for c in text] if ids else text
    second = first + first[:100]
    whole = length(request(prompt=first))
    assert 0.8 * whole <= common(request(prompt=first), request(prompt=second)) <= whole
    changed = [0, *first[1:]] if ids else "Z" + first[1:]
    assert common(request(prompt=first), request(prompt=changed)) == 0


@pytest.mark.parametrize(
    "params", [SamplingParams(adapter="a"), SamplingParams(kv_budget=64), SamplingParams(seed=1)]
)
def test_snapshots_of_another_adapter_or_budget_are_of_no_use(params: SamplingParams) -> None:
    one, other = request(messages=[ASK]), request(messages=[ASK], params=params)
    assert (common(one, other) > 0) == (params.seed == 1)


def test_text_messages_and_ids_are_not_confused() -> None:
    assert common(request(prompt="[]"), request(messages=[])) == 0


def test_every_turn_has_the_same_opening() -> None:
    turns = [[SYSTEM, ASK], [SYSTEM, ASK, ANSWER, MORE], [SYSTEM, ASK, *[ANSWER, MORE] * 99]]
    prefixes = [prefix_of(request(messages=turn)) for turn in turns]
    assert len({prefix.opening for prefix in prefixes if prefix is not None}) == 1


@pytest.mark.parametrize(
    "odd", [{"prompt": ""}, {"prompt": []}, {"messages": []}, {"prompt": "\udcff"}]
)
def test_odd_prompts_have_an_opening(odd: dict[str, Any]) -> None:
    prefix = prefix_of(request(**odd))
    assert prefix is not None
    assert prefix.opening


def test_embeddings_use_no_snapshot() -> None:
    assert prefix_of(EmbedRequest(request_id="a", prompt="x")) is None


def test_the_least_recently_seen_are_forgotten_and_so_are_replicas_that_left() -> None:
    holders = Holders(capacity=2)
    holders.add("r1", [b"a", b"b"])
    holders.add("r2", [b"a", b"c"])
    assert set(holders._replicas) == {b"a", b"c"}
    assert set(holders._replicas[b"a"]) == {"r1", "r2"}
    holders.keep({"r1"})
    assert holders._replicas == {b"a": {"r1": None}}


def test_what_is_published_is_bounded_and_newest() -> None:
    published = Published(capacity=3)
    prefixes = [prefix_of(request(prompt=text)) for text in ("one", "two", "three", "four", "two")]
    for prefix in [*prefixes, None]:
        published.add(prefix)
    newest = [prefix.marks[-1][1] for prefix in prefixes[2:] if prefix is not None]
    assert list(unpack(published.pack())) == newest
