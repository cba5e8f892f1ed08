"""CPU cores of the replicas: a local application shares the machine's."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from llamahome.config import ServeRoot

CLUSTER_CPUS = 1.0  # for each replica, unless the config says more


def with_cores(root: ServeRoot) -> ServeRoot:
    """Fill in `serve.cpus_per_replica`, and on this machine `engine.num_threads`.

    A local application shares the cores evenly among `serve.max_replicas`: as many as torch takes
    by itself, so OMP_NUM_THREADS counts, or `cluster.num_cpus` if that is less. Fields that have a
    value keep it.
    """
    cpus, threads = root.serve.cpus_per_replica, root.engine.num_threads
    if root.cluster.address != "local":
        return replace(root, serve=replace(root.serve, cpus_per_replica=cpus or CLUSTER_CPUS))
    if cpus is None:
        cores = min(torch.get_num_threads(), root.cluster.num_cpus or math.inf)
        cpus = _share(int(cores), root.serve.max_replicas)
        cpus = min(cpus, threads) if threads else cpus
    return replace(
        root,
        serve=replace(root.serve, cpus_per_replica=cpus),
        engine=replace(root.engine, num_threads=threads or max(1, int(cpus))),
    )


def _share(cores: int, replicas: int) -> float:
    """Return whole cores, or hundredths of one, that Ray can count for each replica."""
    return float(cores // replicas) or math.floor(100 * cores / replicas) / 100


def cores_text(root: ServeRoot) -> str:
    """Return what the replicas take, for the ready line.

    Args:
        root: after `with_cores`.
    """
    threads, most = root.engine.num_threads, root.serve.max_replicas
    unit, each = ("CPU thread", threads) if threads else ("CPU", root.serve.cpus_per_replica or 0)
    plural = "" if each == 1 else "s"
    return f"{each:g} {unit}{plural}" if most == 1 else f"up to {most} x {each:g} {unit}{plural}"
