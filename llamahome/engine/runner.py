"""The model over its slots: every tensor of the engine is here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llamahome.attention import HybridAttention, Policy
from llamahome.cache import Slots


class Runner:
    """Runs token ids through the model and keeps what they leave in the slots."""

    def __init__(
        self, model: PreTrainedModel, policy: Policy, *, num_slots: int, max_length: int
    ) -> None:
        HybridAttention.attach(model)
        self.model = model.eval()
        self.slots = Slots.for_model(model, policy, num_slots=num_slots, max_length=max_length)

    @torch.inference_mode()
    def forward(self, rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Logits (B, V) after the last token of each row; the rows' slots advance.

        Args:
            rows: slots, B of them.
            tokens: per row at least one id, at most the room in the slot's chunk.
        """
        counts = [len(ids) for ids in tokens]
        longest = max(counts)
        padded = [[*ids, *[0] * (longest - len(ids))] for ids in tokens]
        last = torch.tensor(counts, device=self.model.device) - 1
        wanted, row_of = last.unique(return_inverse=True)
        step = self.slots.begin(rows, counts)
        output = self.model(
            input_ids=torch.tensor(padded, device=self.model.device),
            position_ids=step.position_ids,
            use_cache=False,
            logits_to_keep=wanted,
            hybrid=step,
        )
        self.slots.commit(step)
        logits: Tensor = output.logits[torch.arange(len(counts)), row_of]
        return logits.float()
