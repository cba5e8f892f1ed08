"""Ray's notices that a node is about to be taken away: a spot instance, or a drained node."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import ray.train
import torch
import torch.distributed as dist
from ray.train import PreemptionInfo

LOOK_S = 1.0  # Ray itself looks every five seconds, and asking it costs milliseconds


class PreemptionNotices:
    """Notices about the nodes of this run's workers."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._looked = -LOOK_S

    def new(self, device: torch.device) -> str | None:
        """Return one line on nodes that were not announced before, the same on all workers.

        All workers must call it equally often. Most calls cost one reduction, whatever Ray knows.
        """
        if not self._is_time(device):
            return None
        notice = ray.train.get_preemption_info()
        if notice is None or self._known.issuperset(notice.preempted_node_ids):
            return None
        self._known.update(notice.preempted_node_ids)
        return spelled(notice)

    def _is_time(self, device: torch.device) -> bool:
        """Return whether worker 0 wants to look now: clocks differ, and all must ask together."""
        now = time.monotonic()
        due = dist.get_rank() == 0 and now - self._looked >= LOOK_S
        flag = torch.tensor(int(due), device=device)
        dist.all_reduce(flag)
        if flag:
            self._looked = now
        return bool(flag)


def spelled(notice: PreemptionInfo) -> str:
    """Return a notice in one line: the nodes, their workers and the time that is left."""
    when = "soon"
    if notice.deadline_ms is not None:
        at = datetime.fromtimestamp(notice.deadline_ms / 1000, UTC)
        left = max(0, int(notice.deadline_ms / 1000 - time.time()))
        when = f"at {at:%Y-%m-%d %H:%M:%S} UTC, in {left} s"
    nodes = _counted("node", [node[:8] for node in notice.preempted_node_ids])
    workers = _counted("worker", [str(rank) for rank in notice.preempted_ranks])
    return f"Ray: {nodes} ({workers}) will be taken away {when}"


def _counted(name: str, values: list[str]) -> str:
    return f"{name}{'s' * (len(values) > 1)} {', '.join(values)}"
