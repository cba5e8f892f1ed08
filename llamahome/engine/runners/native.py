"""The fast path on a CPU: the C++ model of `llamahome.native` over tiled slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from llamahome.attention import Policy
from llamahome.cache import Slots
from llamahome.cache.tiled import TiledPlane
from llamahome.engine.runners.contract import RowInput, StepOutput, plain_model
from llamahome.engine.runners.native_model import build_model
from llamahome.engine.runners.threads import one_torch_thread
from llamahome.native import load_native
from llamahome.native.columns import AcceptColumns, RowColumns


@dataclass(frozen=True)
class _Committed:
    """What `Slots.commit` asks of a step."""

    rows: list[int]
    tokens: list[int]


class NativeRunner:
    """Prefill and decode of any mix of rows in one parallel region, without padding.

    It keeps a team of threads of its own.

    Args:
        model: a Llama on the CPU, float32 or 16 bits; with adapters, PEFT's model of it.
        int8: weights in 8 bits (see `llamahome.native.weights`), else float32.
        kv_dtype: of keys and values: float32, float16 or int8.
        threads: of the step; 0 is torch's number.
        isa: `auto`, or the name of an instruction set.

    Raises:
        NativeUnavailableError: when the kernels cannot be built.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        policy: Policy,
        *,
        num_slots: int,
        max_length: int,
        int8: bool = True,
        kv_dtype: torch.dtype = torch.float16,
        threads: int = 0,
        isa: str = "auto",
    ) -> None:
        load_native()
        plain = plain_model(model)
        self.adapters = list(model.peft_config) if isinstance(model, PeftModel) else []
        self.vocab_size: int = plain.config.vocab_size
        self._model = build_model(
            plain,
            self.adapters,
            int8=int8,
            max_length=max_length,
            threads=threads or torch.get_num_threads(),
            isa=isa,
        )
        budgets: dict[int | None, int] = {}
        self.slots = Slots.for_model(
            plain,
            policy,
            num_slots=num_slots,
            max_length=max_length,
            dtype=kv_dtype,
            allocate=lambda shape: TiledPlane.allocate(
                shape,
                kv_dtype,
                self._model,
                budgets.setdefault(shape.policy.config.budget, len(budgets)),
            ),
        )
        self._budgets = list(budgets)
        self._drafted: dict[int, int] = {}  # of the last step: slot -> row
        kv_name = str(kv_dtype).removeprefix("torch.")
        self.name = (
            f"native {self._model.isa()}, {'int8' if int8 else 'float32'} weights, {kv_name} KV"
        )

    def forward(self, rows: Sequence[RowInput]) -> StepOutput:
        with one_torch_thread():
            return self._forward(rows)

    def _forward(self, rows: Sequence[RowInput]) -> StepOutput:
        slots = self.slots
        counts = [len(row.tokens) for row in rows]
        used = [row.slot for row in rows]
        slots.check(used, counts)
        ids = [token for row in rows for token in row.tokens]
        wanted, last, spans = _wanted(rows, counts)
        hidden, logits = self._model.forward(
            torch.tensor(ids),
            torch.tensor(
                [
                    RowColumns(
                        slot=row.slot,
                        tokens=n,
                        length=slots.lengths[row.slot],
                        max_mass=slots.policy.config.group == "max",
                        drafted=row.drafted,
                    )
                    for row, n in zip(rows, counts, strict=True)
                ]
            ),
            torch.tensor(
                [
                    [slots.policies_of(slot)[budget].held(slots.lengths[slot]) for slot in used]
                    for budget in self._budgets
                ]
            ),
            torch.tensor(self._weights(used, counts), dtype=torch.float32),
            torch.tensor(self._adapters(rows, counts)),
            torch.tensor(wanted),
        )
        self._drafted = {row.slot: i for i, row in enumerate(rows) if row.drafted}
        self._commit({row.slot: n for row, n in zip(rows, counts, strict=True) if not row.drafted})
        logits = logits[:, : self.vocab_size]
        every = {
            i: (hidden if rows[i].every == "hidden" else logits)[first:end]
            for i, (first, end) in spans.items()
        }
        whole = len(wanted) == len(rows)
        return StepOutput(logits=logits if whole else logits[last], every=every)

    def accept(self, kept: Mapping[int, int]) -> None:
        self._model.accept(
            torch.tensor([AcceptColumns(self._drafted[slot], n) for slot, n in kept.items()])
        )
        with one_torch_thread():
            self._commit(kept)

    def _commit(self, tokens: Mapping[int, int]) -> None:
        self.slots.commit(_Committed(list(tokens), list(tokens.values())))

    def _weights(self, used: list[int], counts: list[int]) -> list[float]:
        """Of each token's probabilities in the mass."""
        weights: list[float] = []
        for slot, n in zip(used, counts, strict=True):
            mass = next((p.mass for p in self.slots.policies_of(slot).values() if p.mass), None)
            offset = self.slots.lengths[slot] % self.slots.policy.interval
            weights += [0.0] * n if mass is None else mass.weights[offset : offset + n]
        return weights

    def _adapters(self, rows: Sequence[RowInput], counts: list[int]) -> list[int]:
        indices: list[int] = []
        for row, n in zip(rows, counts, strict=True):
            indices += [-1 if row.adapter is None else self.adapters.index(row.adapter)] * n
        return indices


def _wanted(
    rows: Sequence[RowInput], counts: list[int]
) -> tuple[list[int], list[int], dict[int, tuple[int, int]]]:
    """Tokens whose outcome is asked for; where each row's last and a row's whole are among them."""
    wanted: list[int] = []
    last: list[int] = []
    spans: dict[int, tuple[int, int]] = {}
    first = 0
    for i, (row, n) in enumerate(zip(rows, counts, strict=True)):
        begin = len(wanted)
        wanted += range(first if row.every else first + n - 1, first + n)
        last.append(len(wanted) - 1)
        if row.every:
            spans[i] = (begin, len(wanted))
        first += n
    return wanted, last, spans
