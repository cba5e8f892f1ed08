"""Requests go to the replica that has read the most of them before."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from serve.catalog import Served
from serve.ray.prefixes import Holders, Prefix, prefix_of, unpack

HELD = "held"
MODELS = "models"
# Reading 2 KB, some 512 tokens, costs a replica about as much as one more request
# to decode next to the others: with this much in common, one request more is accepted.
BYTES_PER_REQUEST = 2048


class PrefixRouter(RequestRouter):
    """A router by common beginnings and load.

    A replica costs the requests that it has, less the part of the new one that it has read, in
    units of `BYTES_PER_REQUEST`; the cheapest gets it. So a common beginning is worth some load but
    never more than a full batch, short ones only break ties, and without one the least loaded
    replica is taken. Among equals rendezvous hashing of the conversation's opening decides
    (Thaler and Ravishankar, 1998), which is the same in every ingress.

    Knowledge comes from two sides. A router remembers where it sent requests, which is at once
    right for its own clients. Replicas tell all routers, every few seconds through Serve's routing
    stats, what they have read; so several ingresses agree, and one that starts anew need not learn.
    A replica without the request's model has to load it, which costs as much as a full batch: so an
    idle one does, once those that have the model are full, and a model spreads with its load.

    The map is a hint. A replica may have dropped a snapshot, or may be gone: then the prompt is
    read as any other.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._holders = Holders()
        self._heard: dict[str, bytes] = {}
        self._models: dict[str, set[str]] = {}  # keys of models, by replica
        self._slots = 1

    def initialize_state(self, *, slots: int) -> None:  # type: ignore[override]
        """Take the router's option: the slots of one replica."""
        self._slots = slots

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take in the replicas that run, with what they have read since."""
        super().update_replicas(replicas)
        names = {replica.replica_id.unique_id for replica in replicas}
        if self._heard.keys() - names:
            self._holders.keep(names)
        heard = {r.replica_id.unique_id: r.routing_stats.get(HELD, b"") for r in replicas}
        for name, packed in heard.items():
            if packed != self._heard.get(name):
                self._holders.add(name, unpack(packed))
        self._heard = heard
        for replica in replicas:
            if (keys := replica.routing_stats.get(MODELS)) is not None:
                self._models[replica.replica_id.unique_id] = set(keys.decode().split())
        for gone in self._models.keys() - names:
            del self._models[gone]

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return all replicas, the best first; Serve takes the first that has room."""
        prefix = None
        if pending_request is not None:
            # Without this, Serve would ask again at once, for ever, while every replica is full.
            pending_request.routing_context.should_backoff = True
            prefix = _prefix(pending_request)
        matched = {} if prefix is None else self._holders.matched(prefix)
        model = _model(pending_request)

        def cost(replica: RunningReplica) -> tuple[float, float]:
            name = replica.replica_id.unique_id
            load = self._replica_queue_len_cache.get(replica.replica_id) or 0
            worth = min(matched.get(name, 0) / BYTES_PER_REQUEST, self._slots)
            if model is not None and model not in self._models.get(name, {model}):
                load += self._slots
            return load - worth, random.random() if prefix is None else rendezvous(prefix, name)

        return [[replica] for replica in sorted(candidate_replicas, key=cost)]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """Remember who reads this request, and holds its model from now on."""
        model = _model(pending_request)
        if model is not None and replica_id.unique_id in self._models:
            self._models[replica_id.unique_id].add(model)
        prefix = _prefix(pending_request)
        if prefix is not None:
            self._holders.add(replica_id.unique_id, prefix.digests)


def _prefix(pending_request: PendingRequest) -> Prefix | None:
    return prefix_of(pending_request.args[0]) if pending_request.args else None


def _model(pending_request: PendingRequest | None) -> str | None:
    """Return the key of the model that a request is for."""
    request = pending_request.args[0] if pending_request and pending_request.args else None
    served = getattr(request, "model", None)
    return served.key if isinstance(served, Served) else None


def rendezvous(prefix: Prefix, replica: str) -> float:
    """Return the place of a replica for a conversation; the lowest comes first."""
    digest = hashlib.blake2b(prefix.opening + replica.encode(), digest_size=8).digest()
    return float(int.from_bytes(digest))
