"""Fingerprints of the beginnings of requests, and which replicas have read which.

The engine finds a snapshot by the tokens of a prompt. Here there is no tokenizer, so prompts are
compared as the client wrote them: two requests that begin with the same bytes begin with the same
tokens, but for the few at the cut.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, takewhile

from serve.wire import GenerateRequest

DIGEST_BYTES = 8
FIRST_CUT = 64
# Cuts within a text, each a quarter further on than the one before: a common beginning is
# recognised to at least four fifths of its length, by some 30 digests however long it is.
CUTS = tuple(accumulate(range(40), lambda cut, _: cut * 5 // 4, initial=FIRST_CUT))
# The next turn of a chat adds a few messages, so the ends of older ones need no digest.
NEWEST_ENDS = 32
# Bytes of a text by which it is known again; a chat is, by its first message of a user.
OPENING_BYTES = 1024
MAX_KNOWN = 65_536
MAX_PUBLISHED = 1024


@dataclass(frozen=True)
class Prefix:
    """The beginnings of one request.

    Attributes:
        marks: lengths in bytes, growing, with the digest of the request up to there.
        opening: digest by which all turns of a conversation are known.
    """

    marks: tuple[tuple[int, bytes], ...]
    opening: bytes

    @property
    def digests(self) -> Iterator[bytes]:
        return (digest for _, digest in self.marks)


def prefix_of(request: object) -> Prefix | None:
    """Return the beginnings of a request; None for one that no snapshot serves."""
    if not isinstance(request, GenerateRequest):
        return None
    parts, opening = _serialised(request)
    data = b"".join(parts)
    ends = list(accumulate(map(len, parts)))
    opening = min(opening, len(data))
    inner = takewhile(lambda cut: cut < len(data), CUTS)
    # Snapshots of another model, adapter, policy or budget are of no use.
    params = request.params
    model = None if request.model is None else request.model.key
    asked = (model, params.adapter, params.kv_policy, params.kv_budget)
    root = repr((request.messages is None, *asked))
    hasher = hashlib.blake2b(root.encode(), digest_size=DIGEST_BYTES)
    marks: dict[int, bytes] = {}
    begin = 0
    for cut in sorted({opening, *inner, *ends[-NEWEST_ENDS:]}):
        hasher.update(data[begin:cut])
        marks[cut] = hasher.digest()
        begin = cut
    return Prefix(tuple(marks.items()), marks[opening])


def _serialised(request: GenerateRequest) -> tuple[list[bytes], int]:
    """Return the request's messages, or its prompt, as bytes; and the length of its opening."""
    if request.messages is None:
        prompt = request.prompt
        text = prompt if isinstance(prompt, str) else " ".join(map(str, prompt or ()))
        return [text.encode(errors="surrogatepass")], OPENING_BYTES
    parts = [json.dumps(message, sort_keys=True).encode() for message in request.messages]
    users = (i for i, message in enumerate(request.messages) if message["role"] == "user")
    return parts, sum(map(len, parts[: next(users, 0) + 1]))


class Holders:
    """The replicas that have read a beginning. The least recently seen ones are forgotten."""

    def __init__(self, capacity: int = MAX_KNOWN) -> None:
        self._capacity = capacity
        self._replicas: OrderedDict[bytes, dict[str, None]] = OrderedDict()

    def add(self, replica: str, digests: Iterable[bytes]) -> None:
        for digest in digests:
            self._replicas.setdefault(digest, {})[replica] = None
            self._replicas.move_to_end(digest)
        while len(self._replicas) > self._capacity:
            self._replicas.popitem(last=False)

    def keep(self, replicas: Collection[str]) -> None:
        """Forget all replicas but these."""
        for digest, holders in list(self._replicas.items()):
            for gone in holders.keys() - replicas:
                del holders[gone]
            if not holders:
                del self._replicas[digest]

    def matched(self, prefix: Prefix) -> dict[str, int]:
        """Return how many bytes of a request each replica has read; those of none are absent."""
        return {
            replica: length
            for length, digest in prefix.marks
            for replica in self._replicas.get(digest, ())
        }


class Published:
    """The newest beginnings that one replica has read, as it tells them to the routers."""

    def __init__(self, capacity: int = MAX_PUBLISHED) -> None:
        self._capacity = capacity
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def add(self, prefix: Prefix | None) -> None:
        for digest in () if prefix is None else prefix.digests:
            self._digests[digest] = None
            self._digests.move_to_end(digest)
        while len(self._digests) > self._capacity:
            self._digests.popitem(last=False)

    def pack(self) -> bytes:
        return b"".join(self._digests)


def unpack(packed: bytes) -> Iterator[bytes]:
    """Yield the digests of a `Published.pack`."""
    starts = range(0, len(packed), DIGEST_BYTES)
    return (packed[start : start + DIGEST_BYTES] for start in starts)
