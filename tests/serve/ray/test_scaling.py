"""The number of replicas for tables of states, and over time under Ray Serve's own delays."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from llamahome.config import ServeConfig, ServeRoot
from serve.ray.application import autoscaling
from serve.ray.scaling import FirstTokens, Load, Targets, wanted_replicas

BY = Targets(slots=6, queued_tokens=2048, ttft_s=2.0)
IDLE = Load()


def busy(requests: float, tokens: float = 0, ttft_s: float = 0) -> Load:
    return Load(requests=requests, queued_tokens=tokens, ttft_s=ttft_s)


@pytest.mark.parametrize(
    ("loads", "target", "requests", "wanted"),
    [
        # Slots in use.
        ([IDLE], 1, 0, 0),
        ([busy(6)], 1, 6, 1),
        ([busy(7)], 1, 7, 2),
        ([busy(20)], 1, 20, 4),
        ([busy(7)], 2, 7, 2),  # the second is starting
        ([], 0, 3, 1),
        ([busy(2)], 1, 9, 2),  # the router holds what no replica has yet
        # Tokens to read.
        ([busy(4, tokens=2048)], 1, 4, 1),
        ([busy(4, tokens=6000)], 1, 4, 3),
        ([busy(1, tokens=60_000)], 1, 1, 1),  # one prompt is read by one replica
        ([busy(2, tokens=60_000)], 1, 2, 2),
        # Time to the first token.
        ([busy(4, ttft_s=2.0)], 1, 4, 1),
        ([busy(4, ttft_s=2.1)], 1, 4, 2),
        ([busy(4, ttft_s=9.0), busy(1, ttft_s=0.2)], 2, 5, 2),  # the next goes to the second
        ([busy(4, ttft_s=9.0), busy(1, ttft_s=3.0)], 2, 5, 3),
        ([busy(4, ttft_s=9.0)], 2, 4, 2),  # one is starting
        ([busy(1, ttft_s=9.0)], 1, 1, 1),  # nobody else waits
        # Down: with room to spare, and not while late.
        ([busy(3), busy(3)], 2, 6, 2),
        ([busy(3), busy(1.8)], 2, 4.8, 1),
        ([busy(2), busy(2), busy(2)], 3, 6, 2),
        ([busy(1, ttft_s=5), busy(1, ttft_s=5)], 2, 2, 2),
        ([IDLE, IDLE, IDLE], 3, 0, 0),
    ],
)
def test_states(loads: list[Load], target: int, requests: float, wanted: int) -> None:
    assert wanted_replicas(loads, target=target, requests=requests, by=BY) == wanted


def test_a_load_at_the_edge_settles() -> None:
    target, targets = 1, []
    for step in range(100):
        requests = 6 + step % 2  # one replica is enough for every other step
        loads = [busy(requests / target)] * target
        target = wanted_replicas(loads, target=target, requests=requests, by=BY)
        targets.append(target)
    assert targets[2:] == [2] * 98


@pytest.mark.parametrize("requests", [1, 5, 6, 7, 13, 40])
def test_what_is_wanted_is_wanted_still_when_it_is_there(requests: int) -> None:
    first = wanted_replicas([busy(requests)], target=1, requests=requests, by=BY)
    loads = [busy(requests / first)] * first
    assert wanted_replicas(loads, target=first, requests=requests, by=BY) == first


@dataclass
class Cluster:
    """Ray Serve's decisions over time: its delays and bounds around our policy."""

    config: AutoscalingConfig
    replicas: int = 1
    now: float = 0.0
    state: dict[str, Any] = field(default_factory=dict)

    def run(self, seconds: float, requests: float) -> list[int]:
        """Return the replicas after each half second under a load shared evenly."""
        policy = _apply_autoscaling_config(
            self.config.policy.get_policy()(**self.config.policy.policy_kwargs)
        )
        deployment = DeploymentID(name="engine", app_name="app")
        past = []
        for _ in range(math.ceil(seconds / 0.5)):
            self.now += 0.5
            ids = [ReplicaID(str(i), deployment) for i in range(self.replicas)]
            share = requests / max(1, self.replicas)
            context = AutoscalingContext(
                deployment_id=deployment,
                deployment_name="engine",
                app_name="app",
                current_num_replicas=self.replicas,
                target_num_replicas=self.replicas,
                running_replicas=ids,
                total_num_requests=requests,
                total_queued_requests=0.0,
                aggregated_metrics={"requests": dict.fromkeys(ids, share)},
                raw_metrics=None,
                capacity_adjusted_min_replicas=self.config.min_replicas,
                capacity_adjusted_max_replicas=self.config.max_replicas,
                policy_state=self.state,
                last_scale_up_time=None,
                last_scale_down_time=None,
                current_time=self.now,
                config=self.config,
            )
            wanted, self.state = policy(context)
            self.replicas = max(self.config.min_replicas, min(self.config.max_replicas, wanted))
            past.append(self.replicas)
        return past


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Up to three replicas of eight slots, down to none."""
    serve = ServeConfig(min_replicas=0, max_replicas=3, upscale_delay_s=2, downscale_delay_s=20)
    made = Cluster(autoscaling(ServeRoot(serve=serve)))
    monkeypatch.setattr("ray.serve.autoscaling_policy.time.time", lambda: made.now)
    return made


def test_up_after_a_short_delay_and_down_after_a_long_one(cluster: Cluster) -> None:
    up = cluster.run(10, requests=16)
    assert (up[0], up[-1]) == (1, 3)
    assert up.index(3) * 0.5 == pytest.approx(2, abs=1)
    down = cluster.run(60, requests=1)
    assert down.index(1) * 0.5 == pytest.approx(20, abs=1)
    assert set(down) == {3, 1}


def test_to_zero_and_back_at_once(cluster: Cluster) -> None:
    assert cluster.run(30, requests=0)[-1] == 0
    assert cluster.run(0.5, requests=1) == [1]


def test_waves_shorter_than_the_delay_do_not_flap(cluster: Cluster) -> None:
    past = [cluster.run(4, requests=16 if wave % 2 == 0 else 1)[-1] for wave in range(20)]
    assert past == [3] * 20


def test_first_tokens_count_what_still_waits() -> None:
    now = 0.0
    tokens = FirstTokens(clock=lambda: now)
    assert tokens.longest() == 0
    with tokens.request() as arrived:
        now = 3.0
        assert tokens.longest() == 3
        assert arrived()
        now = 4.0
        assert not arrived()
        assert tokens.longest() == 3
        with tokens.request():  # a client that leaves before its first token
            now = 8.0
            assert tokens.longest() == 4
        assert tokens.longest() == 3
    now = 13.5
    assert tokens.longest() == 0
