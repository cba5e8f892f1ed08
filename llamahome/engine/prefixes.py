"""Requests that begin alike begin from a snapshot, and leave theirs behind."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from llamahome.cache import Slots, SnapshotStats, SnapshotStore, chain, root_digest
from llamahome.engine.scheduler import Request

MAX_TAILS = 4_096


@dataclass
class _Path:
    """Where a running request's tokens lie in the tree of prefixes."""

    root: bytes
    digests: list[bytes]
    wanted: set[int] = field(default_factory=set)


class PrefixCache:
    """A `SnapshotStore`, as the engine's requests use it.

    Snapshots are taken at chunk boundaries of prompts that are worth one, and where a request ends,
    for the next turn of its chat; that one may lie within a chunk, and is found by how many tokens
    it has beyond the boundary.

    Args:
        identity: of the model; whatever else changes what a prefix leaves behind comes from the
            request.
    """

    def __init__(self, store: SnapshotStore, slots: Slots, identity: str) -> None:
        self._store = store
        self._slots = slots
        self._identity = f"{identity} {slots.policy.config} {slots.dtype}"
        self._interval = slots.policy.interval
        self._paths: dict[str, _Path] = {}
        self._tails: OrderedDict[bytes, int] = OrderedDict()

    def start(self, request: Request, sink: int) -> int:
        """Put the longest snapshot into the request's slot; returns the tokens it stands for."""
        assert request.slot is not None
        params = request.params
        own = f"{params.adapter} {params.kv_policy} {params.kv_budget} {sink}"
        root = root_digest(f"{self._identity} {own}")
        usable = request.tokens[:-1]  # the last one is computed, for its logits
        digests = chain(root, usable, self._interval)
        found = self._store.longest(self._with_tails(root, digests, usable))
        self._paths[request.request_id] = _Path(root, digests, self._store.wanted(digests))
        if found is None:
            return 0
        self._slots.restore(request.slot, found[1])
        return found[1].length

    def _with_tails(self, root: bytes, digests: list[bytes], tokens: list[int]) -> list[bytes]:
        """The chain, and between its links the ends of earlier requests that this one goes on."""
        candidates: list[bytes] = []
        for index, digest in enumerate([root, *digests]):
            if index:
                candidates.append(digest)
            tail = self._tails.get(digest)
            begin = index * self._interval
            if tail is not None and begin + tail <= len(tokens):
                candidates += chain(digest, tokens[begin : begin + tail], tail)
        return candidates

    def note(self, request: Request) -> None:
        """After a step: take the snapshots that are wanted where the request stands now."""
        path = self._paths.get(request.request_id)
        if path is None or not path.wanted or request.computed % self._interval:
            return
        index = request.computed // self._interval - 1
        if index in path.wanted and request.slot is not None:
            path.wanted.remove(index)
            if path.digests[index] not in self._store:
                self._store.put(path.digests[index], self._slots.save(request.slot))

    def end(self, request: Request, *, keep: bool) -> None:
        """A request is over; with `keep` its slot's state stays for who goes on from there."""
        path = self._paths.pop(request.request_id, None)
        if path is None or not keep or request.slot is None:
            return
        tokens = request.tokens[: request.computed]
        known = path.digests[: len(tokens) // self._interval]
        digests = chain(path.root, tokens, self._interval, known)
        self._store.see(digests)
        begin = len(digests) * self._interval
        tail = len(tokens) - begin
        last = digests[-1] if digests else path.root
        if tail:
            self._tails[last] = tail
            self._tails.move_to_end(last)
            if len(self._tails) > MAX_TAILS:
                self._tails.popitem(last=False)
            last = chain(last, tokens[begin:], tail)[0]
        if last not in self._store:
            self._store.put(last, self._slots.save(request.slot))

    def flush(self) -> None:
        """Write what memory holds to the folder, if there is one."""
        self._store.flush()

    def stats(self) -> SnapshotStats:
        return self._store.stats()
