"""The fast runner on a CPU: the C++ model of `llamahome.native` over tiled slots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from llamahome.attention import Policy
from llamahome.cache import Slots, StepPlan
from llamahome.cache.tiled import TiledPlane
from llamahome.engine.runners.contract import RowInput, StepOutput
from llamahome.engine.runners.native_model import build_model
from llamahome.models.decoder import Decoder
from llamahome.native import load_native
from llamahome.native.columns import AcceptColumns, RowColumns

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keep torch on one thread while the kernels' team runs.

    A copy of one row of logits takes 0.02 ms, but 4 ms where two teams of threads spin.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class NativeRunner:
    """Prefill and decode of any mix of rows in one parallel region of its own threads, unpadded.

    Args:
        model: a Llama on the CPU, float32 or 16 bits; with adapters, PEFT's model of it.
        int8: weights in 8 bits (see `llamahome.native.weights`), else float32.
        kv_dtype: of keys and values: float32, float16 or int8.
        threads: number that compute a step; 0 is torch's.
        isa: name of an instruction set, or `auto`.

    Raises:
        NativeUnavailableError: when the kernels cannot be built.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | Decoder,
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
        decoder = Decoder.of(model)
        self.adapters = list(decoder.adapters)
        self.vocab_size: int = decoder.config.vocab_size
        self._model = build_model(
            decoder,
            int8=int8,
            max_length=max_length,
            threads=threads or torch.get_num_threads(),
            isa=isa,
        )
        self.slots = Slots(
            decoder,
            policy,
            num_slots=num_slots,
            max_length=max_length,
            dtype=kv_dtype,
            allocate=lambda shape: TiledPlane.allocate(shape, kv_dtype, self._model),
        )
        self._drafted: dict[int, int] = {}  # slot -> row of the last step, where it has a draft
        kv_name = str(kv_dtype).removeprefix("torch.")
        self.name = (
            f"native {self._model.isa()}, {'int8' if int8 else 'float32'} weights, {kv_name} KV"
        )

    @one_torch_thread()
    def forward(self, rows: Sequence[RowInput]) -> StepOutput:
        slots = self.slots
        counts = [len(row.tokens) for row in rows]
        plan = slots.plan([row.slot for row in rows], counts)
        wanted, last, spans = _wanted(rows, counts)
        hidden, logits = self._model.forward(
            torch.tensor([token for row in rows for token in row.tokens]),
            self._rows_of(rows, plan),
            torch.tensor(plan.held),
            torch.tensor([w for own in plan.weights for w in own], dtype=torch.float32),
            torch.tensor(self._adapters(rows, counts)),
            torch.tensor(wanted),
        )
        self._drafted = {row.slot: i for i, row in enumerate(rows) if row.drafted}
        if self._drafted:
            fixed = {row.slot: len(row.tokens) for row in rows if not row.drafted}
            plan = slots.plan(list(fixed), list(fixed.values()))
        slots.commit(plan)
        logits = logits[:, : self.vocab_size]
        every = {
            i: (hidden if rows[i].every == "hidden" else logits)[first:end]
            for i, (first, end) in spans.items()
        }
        whole = len(wanted) == len(rows)
        return StepOutput(logits=logits if whole else logits[last], every=every)

    def accept(self, tokens: Mapping[int, int]) -> None:
        accepted = [AcceptColumns(self._drafted[slot], n) for slot, n in tokens.items()]
        self._model.accept(torch.tensor(accepted))
        with one_torch_thread():
            self.slots.commit(self.slots.plan(list(tokens), list(tokens.values())))

    def _rows_of(self, rows: Sequence[RowInput], plan: StepPlan) -> torch.Tensor:
        """Return the columns of each row, (B, columns)."""
        by_max = self.slots.policy.config.group == "max"
        parts = zip(plan.slots, plan.tokens, plan.lengths, rows, strict=True)
        return torch.tensor(
            [RowColumns(slot, n, length, by_max, row.drafted) for slot, n, length, row in parts]
        )

    def _adapters(self, rows: Sequence[RowInput], counts: list[int]) -> list[int]:
        """Return the index of each token's adapter; -1 for none."""
        indices: list[int] = []
        for row, n in zip(rows, counts, strict=True):
            indices += [-1 if row.adapter is None else self.adapters.index(row.adapter)] * n
        return indices


def _wanted(
    rows: Sequence[RowInput], counts: list[int]
) -> tuple[list[int], list[int], dict[int, tuple[int, int]]]:
    """Return the tokens that need an output, and among them each row's last and rows in whole."""
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
