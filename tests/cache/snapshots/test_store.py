"""Prefix snapshots: chains of digests, what is kept in memory, and what is worth keeping."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from llamahome.cache import SnapshotStore, chain, open_snapshots, root_digest
from llamahome.config import ConfigError, EngineConfig
from tests.cache.snapshots.states import INTERVAL, ROOT, SIZE, digest, files, prompt, state

# The chain


def test_a_chain_has_one_digest_for_every_full_chunk() -> None:
    for length, chunks in ((0, 0), (3, 0), (4, 1), (7, 1), (8, 2), (400, 100)):
        assert len(chain(ROOT, range(length), INTERVAL)) == chunks


def test_a_digest_stands_for_its_whole_prefix_and_for_nothing_else() -> None:
    tokens = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    digests = chain(ROOT, tokens, INTERVAL)
    assert chain(ROOT, [*tokens[:8], 0, 0, 0, 0], INTERVAL)[:2] == digests[:2]
    changed = chain(ROOT, [0, *tokens[1:]], INTERVAL)
    assert not set(changed) & set(digests)
    assert not set(chain(root_digest("another adapter"), tokens, INTERVAL)) & set(digests)
    assert not set(chain(ROOT, tokens, 2)) & set(digests)
    assert len({len(d) for d in digests}) == 1


def test_different_parts_never_give_the_same_root() -> None:
    roots = [
        ("a", "b"),
        ("a b",),
        ("ab", ""),
        ("a", None),
        ("a", "None"),
        ("a", "null"),
        ("1",),
        (1,),
    ]
    assert len({root_digest(*parts) for parts in roots}) == len(roots)


def test_a_chain_goes_on_from_what_is_known() -> None:
    tokens = list(range(50))
    digests = chain(ROOT, tokens, INTERVAL)
    for known in range(len(digests) + 1):
        assert chain(ROOT, tokens, INTERVAL, digests[:known]) == digests
        poisoned = [-1] * (known * INTERVAL) + tokens[known * INTERVAL :]
        assert chain(ROOT, poisoned, INTERVAL, digests[:known]) == digests or known == 0


def test_a_long_prompt_is_hashed_within_milliseconds() -> None:
    start = time.perf_counter()
    chain(ROOT, range(8000), 64)
    assert time.perf_counter() - start < 0.1


# Memory


def test_the_longest_snapshot_is_found() -> None:
    store = SnapshotStore(10 * SIZE)
    digests = chain(ROOT, range(20), INTERVAL)
    assert store.longest(digests) is None
    store.put(digests[1], state(8))
    store.put(digests[3], state(16))
    found = store.longest(digests)
    assert found is not None
    assert found[0] == 3
    assert found[1].length == 16
    shorter = store.longest(digests[:3])
    assert shorter is not None
    assert shorter[0] == 1
    assert store.longest(chain(ROOT, [1] * 20, INTERVAL)) is None
    assert store.longest([]) is None  # too short to be asked for
    stats = store.stats()
    assert (stats.hits, stats.misses, stats.hit_tokens) == (2, 2, 24)
    assert stats.bytes == 2 * SIZE


def test_the_least_recently_used_leaves_first() -> None:
    store = SnapshotStore(3 * SIZE)
    for number in range(3):
        store.put(digest(number), state())
    store.longest([digest(0)])
    store.put(digest(1), state())
    store.put(digest(3), state())
    assert [digest(n) in store for n in range(4)] == [True, True, False, True]
    assert store.stats().bytes == 3 * SIZE


def test_memory_is_bounded_whatever_comes() -> None:
    store = SnapshotStore(1000)
    random_ = random.Random(0)
    for number in range(300):
        store.put(digest(random_.randrange(50)), state(floats=random_.randrange(1, 400)))
        held = sum(s.nbytes for s in store._states.values())
        assert store.stats().bytes == held <= 1000, number


def test_a_state_larger_than_the_store_is_not_kept() -> None:
    store = SnapshotStore(SIZE - 1)
    store.put(digest(0), state())
    assert digest(0) not in store
    assert store.stats().bytes == 0


def test_statistics_are_a_snapshot() -> None:
    store = SnapshotStore(10 * SIZE)
    before = store.stats()
    store.put(digest(0), state())
    store.longest([digest(0)])
    assert (before.hits, before.bytes) == (0, 0)


# Which boundaries are worth a snapshot


def test_the_last_boundary_of_a_prompt_is_wanted() -> None:
    store = SnapshotStore(10 * SIZE)
    assert store.wanted(prompt("abc")) == {2}
    assert store.wanted([]) == set()


def test_so_is_the_one_where_it_leaves_an_earlier_prompt() -> None:
    store = SnapshotStore(10 * SIZE)
    store.wanted(prompt("system", "one"))
    assert store.wanted(prompt("system", "two")) == {5, 8}
    assert store.wanted(prompt("sys")) == {2}
    assert store.wanted(prompt("other")) == {4}
    assert store.wanted(prompt("system", "tree")) == {6, 9}  # it shares the t of two


def test_what_is_kept_is_not_wanted_again() -> None:
    store = SnapshotStore(10 * SIZE)
    for last in ("one", "two"):
        digests = prompt("system", last)
        for index in store.wanted(digests):
            store.put(digests[index], state(4 * (index + 1)))
    digests = prompt("system", "3")
    found = store.longest(digests)
    assert found is not None
    assert found[0] == 5
    assert store.wanted(digests) == {6}


def test_a_prompt_may_leave_the_path_of_an_answer() -> None:
    store = SnapshotStore(10 * SIZE)
    store.wanted(prompt("question"))
    store.see(prompt("question", "answer"))
    assert store.wanted(prompt("question", "ant")) == {9, 10}


def test_what_was_seen_is_bounded_and_forgotten_from_the_ends() -> None:
    store = SnapshotStore(10 * SIZE, max_seen=6)
    store.wanted(prompt("abcdef"))
    store.wanted(prompt("xy"))
    assert len(store._seen) == 6
    assert store.wanted(prompt("abcdef")) >= {3}


# From the config


def test_the_config_opens_a_store(tmp_path: Path) -> None:
    assert open_snapshots(EngineConfig(snapshot_bytes=0)) is None
    store = open_snapshots(EngineConfig(snapshot_bytes=SIZE, snapshot_dir=str(tmp_path / "x")))
    assert store is not None
    store.put(digest(0), state())
    store.put(digest(1), state())
    assert len(files(tmp_path / "x")) == 1


def test_a_folder_without_memory_before_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"engine\.snapshot_dir='x'"):
        EngineConfig(snapshot_bytes=0, snapshot_dir="x")
