"""Prefix caching: requests begin from the snapshots that earlier ones with the same start left."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from llamahome.cache import SnapshotStats, chain, open_snapshots, root_digest
from llamahome.config import EngineConfig
from llamahome.engine.request import PrefixPath, Request
from llamahome.engine.runners.contract import Runner
from llamahome.models import fingerprint
from llamahome.models.decoder import Decoder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

MAX_TAILS = 4_096


class PrefixCache:
    """A `SnapshotStore`, as the engine's requests use it.

    Snapshots are taken at chunk boundaries of prompts that are worth one, and where a request ends,
    for the next turn of its chat. That end may be within a chunk; it is then found by the number of
    tokens after the boundary.

    Args:
        config: may turn prefix caching off.
        runner: its slots hold the requests; each runner has its own layout and rounding.
        model: the one that the runner computes.

    Raises:
        ConfigError, OSError: as `open_snapshots`.
    """

    def __init__(
        self, config: EngineConfig, runner: Runner, model: PreTrainedModel | PeftModel | Decoder
    ) -> None:
        self._store = open_snapshots(config)
        self._slots = runner.slots
        policy = self._slots.policy
        # Only a folder can hold what another model left.
        weights = "" if config.snapshot_dir is None else fingerprint(model)
        self._identity = (runner.name, weights, policy.digest(), str(self._slots.dtype))
        self._interval = policy.interval
        self._tails: OrderedDict[bytes, int] = OrderedDict()

    def start(self, request: Request) -> None:
        """Put the longest snapshot of a request's prompt into its slot."""
        params = request.params
        # A request that reads every token of its prompt has to compute them all.
        if self._store is None or params.prompt_logprobs is not None:
            return
        assert request.slot is not None
        sink = self._slots.sinks[request.slot]
        own = (params.adapter, params.kv_policy, params.kv_budget, sink)
        root = root_digest(*self._identity, *own)
        usable = request.tokens[:-1]  # the last one is computed, for its logits
        digests = chain(root, usable, self._interval)
        found = self._store.longest(self._with_tails(root, digests, usable))
        request.path = PrefixPath(root, digests, self._store.wanted(digests))
        if found is not None:
            self._slots.restore(request.slot, found[1])
            request.restored = request.computed = found[1].length

    def _with_tails(self, root: bytes, digests: list[bytes], tokens: list[int]) -> list[bytes]:
        """Return the chain, with the ends of earlier requests that lead here between its links."""
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
        """Take the snapshot that is wanted where a request stands after a step, if one is."""
        path = request.path
        if self._store is None or path is None or request.computed % self._interval:
            return
        index = request.computed // self._interval - 1
        if index in path.wanted and request.slot is not None:
            path.wanted.remove(index)
            if path.digests[index] not in self._store:
                self._store.put(path.digests[index], self._slots.save(request.slot))

    def end(self, request: Request, *, keep: bool) -> None:
        """Take a snapshot where a request ended, if `keep`, for requests that go on from there."""
        path = request.path
        if self._store is None or path is None or not keep or request.slot is None:
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
        if self._store is not None:
            self._store.flush()

    def stats(self) -> SnapshotStats:
        return SnapshotStats() if self._store is None else self._store.stats()
