"""The runner in torch: Hugging Face's own model code over slots, on any device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import Tensor
from transformers import PreTrainedModel

from llamahome.attention import HybridAttention, Policy
from llamahome.cache import Slots, SlotStep
from llamahome.engine.runners.contract import RowInput, StepOutput
from llamahome.engine.runners.cuda_graphs import DecodeGraphs
from llamahome.engine.runners.int8_linear import with_int8_linears
from llamahome.models.decoder import plain_model
from llamahome.models.head import output_logits


class TorchRunner:
    """Hugging Face's own model code over slots, on any device.

    Args:
        int8: linear layers in 8 bits, on a CPU, in a copy of the model.
        kv_dtype: of keys and values; None is the model's.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        policy: Policy,
        *,
        num_slots: int,
        max_length: int,
        int8: bool = False,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        model = with_int8_linears(model) if int8 else model
        plain = plain_model(model)
        HybridAttention.attach(plain)
        self.model = model.eval()
        self._plain = plain
        self._adapted = isinstance(model, PeftModel)
        # PEFT mixes low-rank adapters in a batch, but not the norms that an adapter trained.
        self._mixes = not any(isinstance(m, ModulesToSaveWrapper) for m in plain.modules())
        self.slots = Slots(
            plain, policy, num_slots=num_slots, max_length=max_length, dtype=kv_dtype
        )
        weights = "int8" if int8 else plain.dtype
        self.name = f"torch, {weights} weights, {self.slots.dtype} KV".replace("torch.", "")
        self._graphs: DecodeGraphs | None = None
        if plain.device.type == "cuda" and not self._adapted:
            self._graphs = DecodeGraphs(plain, self.slots)
            self._graphs.warm_up()
            self.name += ", CUDA graphs"

    @torch.inference_mode()
    def forward(self, rows: Sequence[RowInput]) -> StepOutput:
        """Run rows of one token apart from longer ones: padding one to a chunk costs a chunk."""
        logits: list[Tensor | None] = [None] * len(rows)
        every: dict[int, Tensor] = {}
        single = [i for i, row in enumerate(rows) if len(row.tokens) == 1]
        longer = [i for i, row in enumerate(rows) if len(row.tokens) > 1]
        if self._graphs is not None and single and not any(rows[i].every for i in single):
            tokens = [rows[i].tokens[0] for i in single]
            decoded = self._graphs.decode([rows[i].slot for i in single], tokens)
            for i, outcome in zip(single, decoded, strict=True):
                logits[i] = outcome
            single = []
        for alike in (*self._alike(rows, single), *self._alike(rows, longer)):
            self._run(rows, alike, logits, every)
        return StepOutput(logits=torch.stack([x for x in logits if x is not None]), every=every)

    def _alike(self, rows: Sequence[RowInput], chosen: list[int]) -> Iterable[list[int]]:
        """Group the rows in `chosen` that one forward can take together."""
        by_adapter: dict[str | None, list[int]] = defaultdict(list)
        for i in chosen:
            by_adapter[None if self._mixes else rows[i].adapter].append(i)
        return by_adapter.values()

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
        plan = self.slots.plan([rows[i].slot for i in chosen], counts)
        step = SlotStep(self.slots, plan)
        hidden = self._hidden(torch.tensor(padded, device=device), step, [rows[i] for i in chosen])
        self.slots.commit(plan)
        last = hidden[torch.arange(len(counts)), torch.tensor(counts) - 1]
        outcomes = output_logits(self._plain, last)
        for row, i, count, outcome in zip(hidden, chosen, counts, outcomes, strict=True):
            logits[i] = outcome
            if rows[i].every == "hidden":
                every[i] = row[:count].float()
            elif rows[i].every == "logits":
                every[i] = output_logits(self._plain, row[:count])

    def _hidden(self, ids: Tensor, step: SlotStep, rows: Sequence[RowInput]) -> Tensor:
        """Compute the last hidden states (B, T, hidden), normed."""
        call = {"position_ids": step.position_ids, "use_cache": False, "hybrid": step}
        if not self._adapted:
            plain: Tensor = self._plain.base_model(input_ids=ids, **call).last_hidden_state
            return plain
        # PEFT chooses adapters by row only in the whole model's forward.
        call |= {"input_ids": ids, "output_hidden_states": True, "logits_to_keep": 1}
        last: Tensor = self._adapted_forward(rows, call).hidden_states[-1]
        return last

    def _adapted_forward(self, rows: Sequence[RowInput], call: dict[str, Any]) -> Any:
        assert isinstance(self.model, PeftModel)
        if self._mixes:
            return self.model(adapter_names=[row.adapter or "__base__" for row in rows], **call)
        name = rows[0].adapter  # the same for all rows
        if name is None:
            with self.model.disable_adapter():
                return self.model(**call)
        self.model.set_adapter(name, inference_mode=True)
        return self.model(**call)
