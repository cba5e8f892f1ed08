"""The state of a slot between two steps, which fits into any slot of the same shape."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class SlotState:
    """A slot, copied to the CPU. Its tensors are never written to, since snapshots share them.

    Attributes:
        length: tokens that went through the slot.
        sink: first tokens that it never evicts.
        tensors: its entries by name, as `Slots.save` names them.
    """

    length: int
    sink: int
    tensors: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())
