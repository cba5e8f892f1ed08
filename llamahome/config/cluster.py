"""The Ray cluster: one of our own on this machine, or a running one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from llamahome.config.checks import at_least, require


@dataclass(kw_only=True)
class ClusterConfig:
    """Ray cluster to start or to join.

    Attributes:
        address: `local` starts a cluster that ends with the program; `auto` joins the one on this
            machine (on the head node of `ray up`); otherwise a ray:// or host:port address.
        num_cpus: logical CPUs of a local cluster; None counts the machine's.
        temp_dir: folder of a local cluster; None creates a private one and removes it.
        dashboard: start the dashboard of a local cluster, on loopback.
    """

    address: str = "local"
    num_cpus: int | None = None
    temp_dir: str | None = None
    dashboard: bool = False

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"local|auto|(ray://)?[^\s/:]+:\d+", self.address) is not None,
            "cluster.address",
            self.address,
            "choose local, auto, <host>:<port> or ray://<host>:<port>",
        )
        if self.num_cpus is not None:
            at_least("cluster.num_cpus", self.num_cpus, 1)
