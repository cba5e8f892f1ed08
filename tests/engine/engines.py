"""Small engines, and their answers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from transformers import PreTrainedModel

from llamahome.config import EngineConfig, PolicyConfig
from llamahome.engine import Engine, TokenDelta
from tests.policies import built


def build_engine(
    model: PreTrainedModel, policy: PolicyConfig, *, eos: Collection[int] = (), **options: Any
) -> Engine:
    """Build an engine in float32, unless `options` ask for something else."""
    config = EngineConfig(**{"weights": "fp32", "max_length": 512, **options})
    return Engine(model, built(policy, model), config, eos_token_ids=eos)


def drain(engine: Engine) -> dict[str, list[TokenDelta]]:
    """Run an engine until it is idle; return the deltas by request."""
    deltas: dict[str, list[TokenDelta]] = {}
    while engine.has_work:
        for delta in engine.step():
            deltas.setdefault(delta.request_id, []).append(delta)
    return deltas


def tokens_in(deltas: list[TokenDelta]) -> list[int]:
    return [delta.token for delta in deltas if delta.token is not None]
