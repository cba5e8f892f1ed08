"""The KV cache: slots of constant size, allocated once, and snapshots of them."""

from llamahome.cache.plan import StepPlan
from llamahome.cache.slots import Slots, SlotState
from llamahome.cache.snapshots.store import (
    SnapshotStats,
    SnapshotStore,
    chain,
    open_snapshots,
    root_digest,
)
from llamahome.cache.step import SlotStep

__all__ = [
    "SlotState",
    "SlotStep",
    "Slots",
    "SnapshotStats",
    "SnapshotStore",
    "StepPlan",
    "chain",
    "open_snapshots",
    "root_digest",
]
