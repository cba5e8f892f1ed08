"""Cores of replicas; torch's choice stands for the machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llamahome.config import ClusterConfig, EngineConfig, ServeConfig, ServeRoot
from serve.ray.cores import cores_text, with_cores


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)


def shared(
    *, threads: int = 0, address: str = "local", num_cpus: int | None = None, **serve: Any
) -> ServeRoot:
    return with_cores(
        ServeRoot(
            serve=ServeConfig(**serve),
            engine=EngineConfig(num_threads=threads),
            cluster=ClusterConfig(address=address, num_cpus=num_cpus),
        )
    )


@pytest.mark.parametrize(
    ("given", "cpus", "threads", "text"),
    [
        ({}, 16, 16, "16 CPU threads"),
        ({"max_replicas": 2}, 8, 8, "up to 2 x 8 CPU threads"),
        ({"max_replicas": 3}, 5, 5, "up to 3 x 5 CPU threads"),
        ({"max_replicas": 24}, 0.66, 1, "up to 24 x 1 CPU thread"),
        ({"num_cpus": 4}, 4, 4, "4 CPU threads"),
        ({"cpus_per_replica": 2.0}, 2, 2, "2 CPU threads"),
        ({"cpus_per_replica": 0.5, "max_replicas": 2}, 0.5, 1, "up to 2 x 1 CPU thread"),
        ({"threads": 3}, 3, 3, "3 CPU threads"),
        ({"threads": 40}, 16, 40, "40 CPU threads"),
        ({"threads": 1, "cpus_per_replica": 4.0}, 4, 1, "1 CPU thread"),
        ({"address": "auto"}, 1, 0, "1 CPU"),
        ({"address": "auto", "cpus_per_replica": 2.0, "max_replicas": 8}, 2, 0, "up to 8 x 2 CPUs"),
    ],
)
def test_a_local_application_shares_the_cores_and_keeps_what_is_given(
    given: dict[str, Any], cpus: float, threads: int, text: str
) -> None:
    root = shared(**given)
    assert root.serve.cpus_per_replica == cpus
    assert root.engine.num_threads == threads
    assert cores_text(root) == text


@pytest.mark.parametrize("replicas", range(1, 40))
def test_all_replicas_fit_on_the_machine(replicas: int) -> None:
    root = shared(max_replicas=replicas)
    assert replicas * (root.serve.cpus_per_replica or 0) <= 16
