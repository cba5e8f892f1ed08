"""Prefix snapshots: slot states at chunk boundaries, by the tokens that led there.

Eviction happens at chunk boundaries only and depends on the tokens so far alone, so the state of a
slot at a boundary is a pure function of the model, the adapter, the policy, the sink and the
prefix. Its size does not depend on the length of the prefix. So requests with the same start may
begin from a snapshot, and get the logits that they would have had without it.
"""

from __future__ import annotations

import json
import struct
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from llamahome.cache.slots import SlotState
from llamahome.cache.snapshots.folder import SnapshotFolder
from llamahome.config import EngineConfig

DIGEST_BYTES = 32  # prompts come from users, who must not find two with one digest
SEEN_DIGESTS = 65_536  # 4 million tokens in chunks of 64; some 10 MB


def root_digest(*identity: object) -> bytes:
    """Return the digest that chains begin with.

    Args:
        identity: everything that changes what a prefix leaves in a slot: model, adapter, policy,
            sink. Encoded as JSON, so that different parts never give the same digest. A salt among
            them separates the snapshots of users.
    """
    text = json.dumps(identity, sort_keys=True)
    return blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


def chain(
    root: bytes, tokens: Sequence[int], interval: int, known: Sequence[bytes] = ()
) -> list[bytes]:
    """Return the digest of every prefix of `tokens` that ends at a chunk boundary, shortest first.

    Entry `i` stands for `(i + 1) * interval` tokens. To look a prompt up, leave out its last token,
    which has to be computed for its logits.

    Args:
        root: from `root_digest`.
        known: the chain of the first of these tokens, which are then not hashed again.
    """
    digests = list(known)
    digest = digests[-1] if digests else root
    for end in range((len(digests) + 1) * interval, len(tokens) + 1, interval):
        chunk = struct.pack(f"<{interval}q", *tokens[end - interval : end])
        digest = blake2b(digest + chunk, digest_size=DIGEST_BYTES).digest()
        digests.append(digest)
    return digests


@dataclass(kw_only=True)
class SnapshotStats:
    """Counters since the start, and what is held now.

    Attributes:
        hits, misses: look-ups of prompts of at least one chunk.
        hit_tokens: prompt tokens that were not computed again.
        bytes: held in memory.
        disk_bytes: held in the folder, checksums and headers included.
    """

    hits: int = 0
    misses: int = 0
    hit_tokens: int = 0
    bytes: int = 0
    disk_bytes: int = 0


class SnapshotStore:
    """Snapshots in memory, least recently used out first, and in a folder behind it.

    A snapshot at every boundary would copy a whole slot for every chunk, so only some are taken
    (`wanted`), like the states of recurrent layers in Marconi (Pan et al. 2024, arXiv 2411.19379).
    Not covered: its eviction by FLOPs saved; here recency alone decides.

    Args:
        max_bytes: limit for tensors in memory.
        folder: takes the snapshots that memory has no room for; None drops them.
        max_seen: digests kept to find where prompts diverge.
    """

    def __init__(
        self,
        max_bytes: int,
        folder: SnapshotFolder | None = None,
        *,
        max_seen: int = SEEN_DIGESTS,
    ) -> None:
        self.max_bytes = max_bytes
        self.max_seen = max_seen
        self._folder = folder
        self._states: OrderedDict[bytes, SlotState] = OrderedDict()
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._stats = SnapshotStats()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._states or (self._folder is not None and digest in self._folder)

    def longest(self, digests: Sequence[bytes]) -> tuple[int, SlotState] | None:
        """Return the index in a chain of the longest prefix that has a snapshot, and its state."""
        for index in reversed(range(len(digests))):
            state = self._find(digests[index])
            if state is not None:
                self._stats.hits += 1
                self._stats.hit_tokens += state.length
                return index, state
        self._stats.misses += bool(digests)
        return None

    def _find(self, digest: bytes) -> SlotState | None:
        if digest in self._states:
            self._states.move_to_end(digest)
            return self._states[digest]
        state = None if self._folder is None else self._folder.get(digest)
        if state is not None:
            self.put(digest, state)
        return state

    def put(self, digest: bytes, state: SlotState) -> None:
        """Keep a state; a digest that is known only becomes the most recently used."""
        if digest not in self._states:
            self._states[digest] = state
            self._stats.bytes += state.nbytes
        self._states.move_to_end(digest)
        while self._stats.bytes > self.max_bytes:
            oldest, evicted = self._states.popitem(last=False)
            self._stats.bytes -= evicted.nbytes
            if self._folder is not None:
                self._folder.put(oldest, evicted)

    def wanted(self, digests: Sequence[bytes]) -> set[int]:
        """Return the boundaries of a prompt that are worth a snapshot, and mark it as seen.

        They are its last one, for the same prompt again, and the one where it leaves the path of an
        earlier prompt, since a third may leave it there too: e.g. the end of a system prompt.
        """
        unseen = (index for index, digest in enumerate(digests) if digest not in self._seen)
        shared = next(unseen, len(digests))
        self.see(digests)
        boundaries = {shared - 1, len(digests) - 1} - {-1}
        return {index for index in boundaries if digests[index] not in self}

    def see(self, digests: Sequence[bytes]) -> None:
        """Remember a path, an answer included, so that `wanted` finds where later prompts leave it.

        The path is marked from its end to its start. So a prefix is more recent than its
        continuations, and the ends of paths are forgotten first.
        """
        for digest in reversed(digests):
            self._seen[digest] = None
            self._seen.move_to_end(digest)
        while len(self._seen) > self.max_seen:
            self._seen.popitem(last=False)

    def flush(self) -> None:
        """Write what is in memory to the folder, if there is one, for the next start."""
        if self._folder is not None:
            for digest, state in self._states.items():
                self._folder.put(digest, state)

    def stats(self) -> SnapshotStats:
        """Return the counters as of now."""
        return replace(self._stats, disk_bytes=0 if self._folder is None else self._folder.nbytes)


def open_snapshots(config: EngineConfig) -> SnapshotStore | None:
    """Return the store that `config` asks for; None where `engine.snapshot_bytes` is 0.

    Raises:
        ConfigError: for a folder that other users may read.
        OSError: for a folder that cannot be made or read.
    """
    if config.snapshot_bytes == 0:
        return None
    folder = None
    if config.snapshot_dir is not None:
        path = Path(config.snapshot_dir).expanduser()
        folder = SnapshotFolder(path, config.snapshot_disk_bytes)
    return SnapshotStore(config.snapshot_bytes, folder)
