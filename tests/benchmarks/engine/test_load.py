"""Load on a tiny engine."""

from __future__ import annotations

from transformers import LlamaForCausalLM

from benchmarks.engine.load import LoadShape, poisson_load, replay
from llamahome.attention import build_policy
from llamahome.config import EngineConfig, PolicyConfig
from llamahome.engine import Engine

DENSE = PolicyConfig.dense()
PROMPTS = [[5 + n, 6, 7, 8] * (n + 1) for n in range(6)]


def _engine(model: LlamaForCausalLM) -> Engine:
    return Engine(model, build_policy(DENSE), EngineConfig(slots=2, max_length=64, runner="torch"))


def test_every_request_gets_all_tokens_after_its_arrival(tiny_llama: LlamaForCausalLM) -> None:
    times = [0.0, 0.0, 0.01, 0.02, 0.2, 0.25]
    lines = replay(_engine(tiny_llama), PROMPTS, times, [5] * 6)
    assert [line.arrived for line in lines] == times
    assert {len(line.tokens) for line in lines} == {5}
    assert all(line.ttft > 0 and line.tpot > 0 for line in lines)


def test_requests_arrive_at_the_asked_share_of_the_capacity(tiny_llama: LlamaForCausalLM) -> None:
    own = poisson_load(_engine(tiny_llama), PROMPTS, LoadShape(answer=4, utilisation=0.5))
    assert own.requests == 3
    assert own.rate == own.capacity * 0.5
    assert own.ttft_p50 <= own.ttft_p99
    assert own.tpot_p50 <= own.tpot_p99
