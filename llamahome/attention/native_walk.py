"""The kernels of a walk on a CPU, in C++: a chunk's attention, and the gradients of all chunks.

They compute in float32. Axes: B batch, H query heads, G KV heads, N tokens, T tokens of a chunk,
K kept keys, S keys, D head_dim.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from llamahome.attention.entries import Entries
from llamahome.attention.mass import Mass

logger = logging.getLogger(__name__)


def has_kernels(query: Tensor) -> bool:
    """Return whether the kernels can attend with `query` (B, H, N, D)."""
    fits = query.dtype != torch.float64 and query.shape[-1] % 16 == 0
    return query.device.type == "cpu" and fits and _loaded()


@cache
def _loaded() -> bool:
    """Load the kernels; the first use on a machine builds them."""
    # They import setuptools, which takes a second.
    from llamahome.native import NativeUnavailableError, load_native

    try:
        load_native()
    except NativeUnavailableError as error:
        logger.warning("training attends on the slow path of torch: %s", error)
        return False
    return True


class NativeChunks:
    """Chunks of one walk, computed by the kernels, one after another.

    Args:
        query: (B, H, N, D).
        key, value: (B, G, N, D), rotated.
        scaling: factor on the logits.
        mass: how mass adds up; None for a policy that needs none.
    """

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, mass: Mass | None
    ) -> None:
        self._dtype = query.dtype
        self._inputs = tuple(x.float() for x in (query, key, value))
        self._scaling = scaling
        self._max = mass is not None and mass.group == "max"
        self._weights = None if mass is None else torch.tensor(mass.weights)
        self._out = torch.empty_like(self._inputs[0])  # in the query's order of axes
        self._lse = self._out.new_empty(query.shape[:3])

    def attend(self, chunk: slice, held: Entries) -> Tensor | None:
        """Attend with a chunk to what is held, itself included; return the mass (B, G, S)."""
        tokens = chunk.stop - chunk.start
        weights = self._weights
        mass: Tensor = torch.ops.llamahome.walk_chunk(
            *self._inputs,
            held.positions[:, :, :-tokens].contiguous(),
            chunk.start,
            chunk.stop,
            self._out,
            self._lse,
            None if weights is None else weights[:tokens],
            self._max,
            self._scaling,
        )
        return None if weights is None else mass

    @property
    def out(self) -> Tensor:
        """Output of all chunks, (B, H, N, D)."""
        return self._out.to(self._dtype)

    @property
    def lse(self) -> Tensor:
        """Logarithm of the sum of each query's exponentials, (B, H, N)."""
        return self._lse


def native_gradients(
    inputs: Sequence[Tensor],
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    kept: Sequence[Tensor],
    *,
    interval: int,
    scaling: float,
    with_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of a walk.

    Args:
        inputs: query (B, H, N, D), key and value (B, G, N, D).
        grad_out: of the output, like `out`.
        out, lse: as `NativeChunks` has them.
        kept: (B, G, K) int32 for each chunk: the positions that it found.
        with_bias: whether to compute the last gradient.

    Returns:
        Gradients of the inputs in their types, and of a bias of 0 on the logits of all kept
        entries, one chunk after another: (B, G, all K) in float32.
    """
    *gradients, of_bias = torch.ops.llamahome.walk_backward(
        grad_out.float(),
        *(x.float() for x in inputs),
        out.float(),
        lse,
        torch.cat(list(kept), dim=2),
        [positions.shape[2] for positions in kept],
        interval,
        with_bias,
        scaling,
    )
    of_query, of_key, of_value = (g.to(x.dtype) for g, x in zip(gradients, inputs, strict=True))
    return of_query, of_key, of_value, of_bias
