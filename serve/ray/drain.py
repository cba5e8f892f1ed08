"""How long a process that is to leave goes on with its answers."""

from __future__ import annotations

from dataclasses import dataclass

from llamahome.config import ServeConfig

# Serve's controller, and processes that end, need a moment beyond their answers.
MARGIN_S = 5.0


@dataclass(frozen=True, kw_only=True)
class DrainLimits:
    """Seconds after which a process that takes nothing new is killed, its answers complete or not.

    Attributes:
        replica_s: an engine replica that is given up or replaced, while others go on.
        ingress_s: an ingress process.
        endpoint_s: all of the endpoint, when it is stopped.
    """

    replica_s: float
    ingress_s: float
    endpoint_s: float


def drain_limits(config: ServeConfig) -> DrainLimits:
    """Return the limits of a config.

    No answer takes longer than `request_timeout_s`, so a replica that has this long cuts none. Who
    stops the endpoint waits for `drain_s` at most.
    """
    return DrainLimits(
        replica_s=config.request_timeout_s + MARGIN_S,
        ingress_s=config.drain_s + MARGIN_S,
        endpoint_s=config.drain_s + 2 * MARGIN_S,
    )
