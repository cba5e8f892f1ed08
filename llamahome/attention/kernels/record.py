"""The record of a plane's entries, which kernels read and write in place.

Axes: G KV heads, C capacity of a slot, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class KVRecord:
    """Entries of some KV heads of one layer, in every slot.

    Attributes:
        keys, values: (slots, G, C, D); the C++ kernels have keys in tiles, see `cache.tiled`.
        mass: (slots, G, C), attention probability that each key has received; at least float32.
        positions: (slots, G, C), int64, of the token in its sequence.
        key_scales, value_scales: (slots, G, C), float32, where keys and values are int8: a number
            is its int8 times its entry's scale. Else None.
        features: (slots, G, C), float32, one number per entry that a policy with features has
            written at the end of the entry's chunk. Else None.
    """

    keys: Tensor
    values: Tensor
    mass: Tensor
    positions: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None
    features: Tensor | None = None

    @cached_property
    def columns(self) -> dict[str, Tensor]:
        """The tensors that are not None, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.columns.values())
