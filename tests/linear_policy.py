"""A small policy with weights, which proves the seams for learned policies.

Each KV head scores an entry by a linear map of its key and value, once, as its feature.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llamahome.attention import policies
from llamahome.attention.entries import Entries
from llamahome.attention.scorer import Scorer
from llamahome.attention.shape import Configured, ModelShape
from llamahome.config import ConfigError, PolicyConfig
from llamahome.config import policy as policy_config

NAME = "linear"


class LinearFeatures(nn.Module):
    """Weights (L, G, 2 D) of all layers and KV heads."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        size = (shape.num_layers, shape.num_kv_heads, 2 * shape.head_dim)
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, entries: Entries) -> Tensor:
        """Return features (B, G, T), independent of the rest of the batch."""
        wide = torch.promote_types(entries.keys.dtype, torch.float32)
        both = torch.cat([entries.keys, entries.values], dim=-1).to(wide)
        weight = self.weight[entries.layer_idx, list(entries.heads)]
        return (both * weight[:, None]).sum(dim=-1)


def build(config: PolicyConfig, model: Configured | None) -> Scorer:
    """Build the scorer for a model; raise ConfigError without one."""
    if model is None:
        raise ConfigError(f"policy.name={config.name!r} needs the model: build_policy(..., model)")
    return Scorer(
        score=_score,
        features=(weights := LinearFeatures(ModelShape.of(model))),
        surrogate=lambda features, ages: features - features.detach(),
        weights=weights,
    )


def _score(entries: Entries) -> Tensor:
    assert entries.features is not None
    return entries.features.double()


@pytest.fixture
def linear_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register `policy.name=linear` for one test, like a policy of the product."""
    monkeypatch.setitem(policies.BUILDERS, NAME, build)
    monkeypatch.setattr(policy_config, "POLICIES", (*policy_config.POLICIES, NAME))
