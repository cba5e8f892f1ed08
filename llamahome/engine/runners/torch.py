"""The model over its slots: every tensor of the engine is behind a `Runner`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import Tensor
from transformers import PreTrainedModel

from llamahome.attention import HybridAttention, Policy
from llamahome.cache import Slots, SlotStep
from llamahome.engine.runners.cuda_graphs import GraphRunner
from llamahome.engine.runners.int8_linear import with_int8_linears

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
        drafted: whether its tokens after the first are guesses: the slot does not advance before
            `DraftRunner.settle` says how many were right.
    """

    slot: int
    tokens: Sequence[int]
    adapter: str | None = None
    every: Every = None
    drafted: bool = False


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """What a step gives.

    Attributes:
        logits: float32 (B, V), after the last token of each row.
        every: by row, where it was asked for: float32 (T, V) or (T, hidden).
    """

    logits: Tensor
    every: dict[int, Tensor] = field(default_factory=dict)

    def after(self, rows: Sequence[int], place: int, drafted: Container[int]) -> Tensor:
        """Logits (len(rows), V) after token `place` of drafted rows and the last of others."""
        if any(row in drafted for row in rows):
            own = (self.every[row][place] if row in drafted else self.logits[row] for row in rows)
            return torch.stack(list(own))
        return self.logits if len(rows) == len(self.logits) else self.logits[rows]


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


@runtime_checkable
class DraftRunner(Runner, Protocol):
    """A runner whose steps may have drafted rows."""

    def settle(self, kept: Mapping[int, int]) -> None:
        """After a step: by slot of each drafted row, how many of its tokens stay, at least 1.

        The slot is then as if each of them had been a step of its own.
        """


def plain_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model that PEFT has put adapters into, or the model itself."""
    if isinstance(model, PeftModel):
        return cast(PreTrainedModel, model.get_base_model())
    return model


class TorchRunner:
    """The plain path: Hugging Face's own model code, on any device.

    Args:
        int8: linear layers in 8 bits, on a CPU; the model that is given stays as it is.
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
        # PEFT mixes low-rank adapters in a batch, but not what else an adapter trained: norms.
        self._mixes = not any(isinstance(m, ModulesToSaveWrapper) for m in plain.modules())
        self.slots = Slots.for_model(
            plain, policy, num_slots=num_slots, max_length=max_length, dtype=kv_dtype
        )
        weights = "int8" if int8 else plain.dtype
        self.name = f"torch, {weights} weights, {self.slots.dtype} KV".replace("torch.", "")
        self._graphs: GraphRunner | None = None
        if plain.device.type == "cuda" and not self._adapted:
            self._graphs = GraphRunner(plain, self.slots)
            self._graphs.warm_up()
            self.name += ", CUDA graphs"

    @torch.inference_mode()
    def forward(self, rows: Sequence[RowInput]) -> StepOutput:
        """Rows of one token and longer ones go apart: padding one to a chunk costs a chunk."""
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
        """Those of `chosen` that one forward can take together."""
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
        call |= {"input_ids": ids, "output_hidden_states": True, "logits_to_keep": 1}
        last: Tensor = self._adapted_forward(rows, call).hidden_states[-1]
        return last

    def _adapted_forward(self, rows: Sequence[RowInput], call: dict[str, Any]) -> Any:
        assert isinstance(self.model, PeftModel)
        if self._mixes:
            return self.model(adapter_names=[row.adapter or "__base__" for row in rows], **call)
        name = rows[0].adapter  # of all of them
        if name is None:
            with self.model.disable_adapter():
                return self.model(**call)
        self.model.set_adapter(name, inference_mode=True)
        return self.model(**call)
