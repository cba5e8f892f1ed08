from __future__ import annotations

from serve.http.stateful.store import MemoryStore, Stored


def stored(owner: str = "me", text: str = "x") -> Stored:
    return Stored(owner=owner, response={"text": text}, turns=[])


async def test_the_least_recently_used_leaves_first():
    store = MemoryStore(2 * stored().size(), 60)
    await store.put("a", stored())
    await store.put("b", stored())
    assert await store.get("a", "me") is not None
    await store.put("c", stored())
    assert [await store.get(key, "me") is None for key in "abc"] == [False, True, False]
    await store.put("d", stored(text="x" * 1000))  # larger than the store
    assert [await store.get(key, "me") is None for key in "acd"] == [False, False, True]


async def test_all_leave_after_their_time():
    now = 0.0
    store = MemoryStore(10_000, 60, lambda: now)
    await store.put("a", stored())
    now = 59
    assert await store.get("a", "me") is not None
    now = 60
    assert await store.get("a", "me") is None
    await store.put("b", stored())
    assert await store.delete("b", "me")
    assert not await store.delete("b", "me")


async def test_only_its_owner_finds_a_response():
    store = MemoryStore(10_000, 60)
    await store.put("a", stored("me"))
    assert await store.get("a", "you") is None
    assert not await store.delete("a", "you")
    assert await store.get("a", "me") is not None
