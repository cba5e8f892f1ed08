"""The model over its slots: every tensor of the engine is behind a `Runner`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from llamahome.attention import HybridAttention, Policy
from llamahome.cache import Slots, SlotStep

# What a row is asked for beside the logits after its last token: nothing, or of each of its tokens
# the logits (a prompt's logprobs) or the last hidden state (an embedding).
Every = Literal["logits", "hidden"] | None


@dataclass(frozen=True, kw_only=True)
class RowInput:
    """A row of a step.

    Attributes:
        slot: where its entries live.
        tokens: at least one id, at most the room in the slot's chunk.
        adapter: name of a LoRA adapter, None for the model as it is.
        every: what is wanted of each token.
    """

    slot: int
    tokens: Sequence[int]
    adapter: str | None = None
    every: Every = None


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """What a step gives.

    Attributes:
        logits: float32 (B, V), after the last token of each row.
        every: by row, where it was asked for: float32 (T, V) or (T, hidden).
    """

    logits: Tensor
    every: dict[int, Tensor] = field(default_factory=dict)


class Runner(Protocol):
    """Runs token ids through the model and keeps what they leave in the slots.

    Attributes:
        name: how it computes, for the stats.
    """

    @property
    def name(self) -> str: ...
    @property
    def slots(self) -> Slots: ...

    def forward(self, rows: Sequence[RowInput]) -> StepOutput:
        """One step; the rows' slots advance."""


class TorchRunner:
    """The plain path: Hugging Face's own model code, on any device."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        policy: Policy,
        *,
        num_slots: int,
        max_length: int,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        adapted = isinstance(model, PeftModel)
        plain: PreTrainedModel = model.get_base_model() if adapted else model  # type: ignore[assignment, operator]
        HybridAttention.attach(plain)
        self.model = model.eval()
        self._plain = plain
        self._adapted = adapted
        self.slots = Slots.for_model(
            plain, policy, num_slots=num_slots, max_length=max_length, dtype=kv_dtype
        )
        self.name = f"torch, {plain.dtype} weights, {self.slots.dtype} KV".replace("torch.", "")

    @torch.inference_mode()
    def forward(self, rows: Sequence[RowInput]) -> StepOutput:
        """Rows of one token and longer ones go apart: padding one to a chunk costs a chunk."""
        logits: list[Tensor | None] = [None] * len(rows)
        every: dict[int, Tensor] = {}
        for alike in (
            [i for i, row in enumerate(rows) if len(row.tokens) == 1],
            [i for i, row in enumerate(rows) if len(row.tokens) > 1],
        ):
            if alike:
                self._run(rows, alike, logits, every)
        return StepOutput(logits=torch.stack([x for x in logits if x is not None]), every=every)

    def _run(
        self,
        rows: Sequence[RowInput],
        chosen: list[int],
        logits: list[Tensor | None],
        every: dict[int, Tensor],
    ) -> None:
        device = self._plain.device
        counts = [len(rows[i].tokens) for i in chosen]
        longest = max(counts)
        padded = [[*rows[i].tokens, *[0] * (longest - len(rows[i].tokens))] for i in chosen]
        step = self.slots.begin([rows[i].slot for i in chosen], counts)
        hidden = self._hidden(torch.tensor(padded, device=device), step, [rows[i] for i in chosen])
        self.slots.commit(step)
        last = hidden[torch.arange(len(counts)), torch.tensor(counts) - 1]
        head = self._plain.get_output_embeddings()
        for row, i, count, outcome in zip(hidden, chosen, counts, head(last).float(), strict=True):
            logits[i] = outcome
            if rows[i].every == "hidden":
                every[i] = row[:count].float()
            elif rows[i].every == "logits":
                every[i] = head(row[:count]).float()

    def _hidden(self, ids: Tensor, step: SlotStep, rows: Sequence[RowInput]) -> Tensor:
        """Last hidden states (B, T, hidden), normed."""
        call = {"position_ids": step.position_ids, "use_cache": False, "hybrid": step}
        if not self._adapted:
            plain: Tensor = self._plain.base_model(input_ids=ids, **call).last_hidden_state
            return plain
        # PEFT chooses adapters by row in the whole model's forward only.
        names = [row.adapter or "__base__" for row in rows]
        output = self.model(
            input_ids=ids, adapter_names=names, output_hidden_states=True, logits_to_keep=1, **call
        )
        last: Tensor = output.hidden_states[-1]
        return last
