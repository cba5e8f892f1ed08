"""The KV cache: slots of constant size, allocated once."""

from llamahome.cache.slots import Slots
from llamahome.cache.step import SlotStep

__all__ = ["SlotStep", "Slots"]
