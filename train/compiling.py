"""torch.compile around the chunk walk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine  # it looks for its device when it is imported

ATTENTION = "hybrid"


def compile_around_attention(engine: DeepSpeedEngine, backend: str = "inductor") -> None:
    """Compile the model, all but its attention.

    The walk is a loop over chunks, whose number follows from a row's length: torch.compile would
    unroll it, for minutes and for each length anew.
    """
    for known in (AttentionInterface(), AttentionMaskInterface()):
        known.register(ATTENTION, torch.compiler.disable(known[ATTENTION]))
    engine.compile(backend=backend)
