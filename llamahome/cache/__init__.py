"""The KV cache: slots of constant size, allocated once."""

from llamahome.cache.slots import Slots, SlotStep

__all__ = ["SlotStep", "Slots"]
