"""A score that is trained for the model: how much attention an entry has still to expect.

Each KV head has a small network, which reads an entry's key and value once, when the entry's chunk
ends; its output is the entry's feature. At a compaction the feature is discounted by the entry's
age: feature - discount * log(age), the logarithm of the attention that each later chunk is expected
to give. So no attention mass is summed, and compaction reads scalars only. Networks on keys and
values alone: Jegou et al. 2026, "KVzap", arXiv 2601.07891; on what leaves the window: "KVpop",
arXiv 2607.05061.

Axes: B batch, L layers, G KV heads, S entries, T new ones, D head_dim, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llamahome.attention.entries import Entries
from llamahome.attention.rotary import frequencies, turned
from llamahome.attention.scorer import FeatureNetwork, Scorer
from llamahome.attention.shape import Configured, ModelShape
from llamahome.config import ConfigError, PolicyConfig

WIDTH = 32


class LearnedScorer(nn.Module):
    """The networks of all KV heads: linear part and one hidden layer, and a discount by age.

    New ones rank by age alone, as `window` does.

    Args:
        rotation: of the model's keys, which is taken off them: angles per position (D / 2,), and
            the factor that comes with it. None where keys are read as they are.
    """

    def __init__(self, shape: ModelShape, rotation: tuple[Tensor, float] | None) -> None:
        super().__init__()
        heads = (shape.num_layers, shape.num_kv_heads)
        size = 2 * shape.head_dim
        # Seeded, so that all workers of a run begin with the same weights.
        draw = torch.Generator().manual_seed(0)
        self.hidden = nn.Parameter(torch.randn(*heads, WIDTH, size, generator=draw) / size**0.5)
        self.hidden_bias = nn.Parameter(torch.zeros(*heads, WIDTH))
        self.out = nn.Parameter(torch.zeros(*heads, WIDTH))
        self.linear = nn.Parameter(torch.zeros(*heads, size))
        self.bias = nn.Parameter(torch.zeros(heads))
        self.discount = nn.Parameter(torch.ones(heads))
        # No buffer: it follows from the model, and 16 bits would be too few.
        self._rotation = rotation

    def forward(self, entries: Entries) -> Tensor:
        """Compute features (B, G, T), each sequence of the batch apart: bitwise as if alone."""
        wide = torch.promote_types(entries.keys.dtype, torch.float32)
        keys = self.unrotated(entries.keys.to(wide), entries.positions)
        inputs = torch.cat([keys, entries.values.to(wide)], dim=-1)
        return torch.stack([self.of(own, entries.layer_idx, entries.heads) for own in inputs])

    def unrotated(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Return keys (..., D) as they were before they were rotated for `positions` (...)."""
        if self._rotation is None:
            return keys
        inv_freq, factor = self._rotation
        angles = positions.unsqueeze(-1) * inv_freq.to(keys.device, keys.dtype)
        return turned(keys, -angles) / factor

    def of(self, inputs: Tensor, layer_idx: int, heads: tuple[int, ...]) -> Tensor:
        """Compute features (G, T) of unrotated keys with their values (G, T, 2 D)."""
        index = (layer_idx, list(heads))
        own = {name: weight[index].to(inputs.dtype) for name, weight in self.named_parameters()}
        hidden = torch.baddbmm(own["hidden_bias"].unsqueeze(1), inputs, own["hidden"].mT)
        both = torch.cat([inputs, nn.functional.silu(hidden)], dim=-1)
        weights = torch.cat([own["linear"], own["out"]], dim=-1)
        return torch.baddbmm(own["bias"].view(-1, 1, 1), both, weights.unsqueeze(-1)).squeeze(-1)

    @torch.no_grad()
    def network(self, layer_idx: int, heads: tuple[int, ...]) -> FeatureNetwork:
        """Return the weights of some heads in the form that kernels take."""
        own = {n: w[layer_idx, list(heads)].float().cpu() for n, w in self.named_parameters()}
        rows = torch.cat([own["hidden"], own["linear"].unsqueeze(1)], dim=1)
        keys, values = (part.contiguous() for part in rows.chunk(2, dim=-1))
        return FeatureNetwork(
            keys=keys,
            values=values,
            hidden_bias=own["hidden_bias"],
            out=own["out"],
            bias=own["bias"],
        )

    def score(self, entries: Entries) -> Tensor:
        """Discount features (B, G, S) by age, in float64."""
        assert entries.features is not None
        discount = self.discount[entries.layer_idx, list(entries.heads)].double()
        ages = entries.ages.double()
        return entries.features.double() - discount[:, None] * ages.log()


def build(config: PolicyConfig, model: Configured | None) -> Scorer:
    """Build the scorer of a model.

    Raises:
        ConfigError: without a model.
    """
    if model is None:
        raise ConfigError("policy.name='learned' needs its model: build_policy(config, model)")
    rotation = None if config.positions == "rolling" else frequencies(model.config)
    weights = LearnedScorer(ModelShape.of(model), rotation)
    return Scorer(
        score=weights.score,
        features=weights,
        # The kernels know keys before they are rotated; with other rotations they must not.
        network=None if rotation is None else weights.network,
        surrogate=lambda features, ages: features - features.detach(),
        weights=weights,
    )
