"""The positions that a KV head keeps, chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from llamahome.attention import Policy
from llamahome.config import EngineConfig
from llamahome.evaluation.reading import open_runner, read


def kept_positions(
    model: PreTrainedModel,
    ids: Sequence[int],
    policy: Policy,
    engine: EngineConfig,
    *,
    layer_idx: int,
    head: int,
) -> list[list[int]]:
    """Return the positions of the text `ids` that a KV head holds after each chunk."""
    runner = open_runner(model, policy, engine, max_length=len(ids))
    slots = runner.slots
    plane = next(p for p in slots.layers[layer_idx].planes if head in p.heads)
    index = plane.heads.index(head)
    kept = []
    for start in range(0, len(ids), policy.interval):
        read(runner, ids[start : start + policy.interval])
        count = plane.shape.policy.held(slots.lengths[0])
        kept.append(plane.kv.positions[0, index, :count].tolist())
    return kept
