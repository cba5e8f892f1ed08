"""The ranking behind a policy. Axes: B batch, G KV heads, S entries, T of them new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor, nn

from llamahome.attention.entries import Entries
from llamahome.attention.mass import Mass


@dataclass(frozen=True, kw_only=True)
class FeatureNetwork:
    """A network per KV head: linear(x) + out . silu(hidden x + hidden_bias) + bias.

    x is an entry's key before it is rotated, and its value. W is the width.

    Attributes:
        keys, values: (G, W + 1, D): the rows of `hidden`, then `linear`, for either part of x.
        hidden_bias, out: (G, W).
        bias: (G,).
    """

    keys: Tensor
    values: Tensor
    hidden_bias: Tensor
    out: Tensor
    bias: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """One object that ranks entries for every budget of a policy.

    A rule needs only `score`, and `mass` where it reads attention. A scorer with weights also
    writes one float per entry, its *feature*, when the entry's chunk ends: then compaction reads
    scalars only, and the state after a prefix depends on its tokens alone.

    Attributes:
        score: from entries to scores (B, G, S); the highest stay.
        mass: how the mass that `score` reads adds up; None when it reads none.
        features: from new entries to their features, float32 (B, G, T), which `score` finds in
            `Entries.features`; None when it reads none. Entries have no mass yet.
        network: from a layer and KV heads of it to the network that `features` computes there, for
            kernels that compute it as entries are written; None where it is none.
        surrogate: from features and ages in tokens, both (B, G, S), to what the backward pass adds
            to the logits of kept entries, so that the loss reaches the weights although selection
            has no gradient. The forward pass never adds it. A value of 0 (`x - x.detach()`, the
            straight-through estimator of Bengio et al. 2013, arXiv 1308.3432, section 2) leaves
            all other gradients exact.
        weights: parameters that `features`, `score` or `surrogate` read; they train with the model
            and are part of the checkpoint.
    """

    score: Callable[[Entries], Tensor]
    mass: Mass | None = None
    features: Callable[[Entries], Tensor] | None = None
    network: Callable[[int, tuple[int, ...]], FeatureNetwork] | None = None
    surrogate: Callable[[Tensor, Tensor], Tensor] | None = None
    weights: nn.Module | None = None

    @torch.no_grad()
    def digest(self) -> str:
        """Hash the weights as they are now, bit for bit; empty without any."""
        if self.weights is None:
            return ""
        digest = blake2b(digest_size=16)
        for name, tensor in sorted(self.weights.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()
