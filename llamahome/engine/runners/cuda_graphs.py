"""Decode by CUDA graphs: one captured for each batch size, replayed at every step of that size.

A step of a small model is hundreds of kernels of a few microseconds each; launching them one by one
takes longer than running them. Captured, they are launched at once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llamahome.attention import HybridAttention
from llamahome.attention.kernels import Implementation
from llamahome.cache import Slots
from llamahome.cache.decode_step import Counted, DecodeStep, counted

logger = logging.getLogger(__name__)

# transformers' rotary embeddings that look at the positions on the host before they rotate.
_LOOKING = ("dynamic", "longrope")


class GraphRunner:
    """Decode steps of a model over its slots. Chunks of prompts are not its business.

    A batch runs in the next larger size, a power of 2 or all slots, filled up with rows that leave
    no trace. On a CPU, or with `capture=False`, it computes the same step by step.

    Args:
        slots: of the model, in torch's layout.
        implementation: of the kernels; None is `triton` on a GPU and `torch` elsewhere.
        capture: whether to replay graphs; None does where there is a GPU.

    Raises:
        ValueError: for a model whose step cannot be captured, or a GPU asked for in vain.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        slots: Slots,
        *,
        implementation: Implementation | None = None,
        capture: bool | None = None,
    ) -> None:
        HybridAttention.attach(model)
        on_gpu = slots.device.type == "cuda"
        self.model = model.eval()
        self.slots = slots
        self.implementation: Implementation = implementation or ("triton" if on_gpu else "torch")
        self.captures = on_gpu if capture is None else capture
        if self.captures:
            _check_capture(model, slots.device)
        self.sizes = _sizes(slots.num_slots)
        self._graphs: dict[tuple[int, Counted], _DecodeGraph] = {}
        self._pool: Any = None

    def warm_up(self) -> None:
        """Capture every size for the slots' own policy, so that no request waits for it."""
        # The largest first: the others fit into the memory that it takes.
        for size in reversed(self.sizes):
            self._graph(size, counted(self.slots, [0]))

    @torch.inference_mode()
    def decode(self, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """One token for each row; the rows' slots advance.

        Args:
            rows: slots, no two alike.
            tokens: the id of each row.

        Returns:
            float32 logits (B, V).

        Raises:
            ValueError: for a slot that comes twice or is full.
        """
        size = next(size for size in self.sizes if size >= len(rows))
        graph = self._graph(size, counted(self.slots, rows))
        logits = graph.run(rows, tokens)
        self.slots.commit(graph.step)
        return logits

    @torch.inference_mode()
    def _graph(self, size: int, counts_mass: Counted) -> _DecodeGraph:
        key = (size, counts_mass)
        if key not in self._graphs:
            step = DecodeStep(self.slots, size, counts_mass, implementation=self.implementation)
            graph = _DecodeGraph(self.model, step, self.slots.device)
            if self.captures:
                self._pool = graph.capture(self._pool)
                logger.info("captured decode for %d rows", size)
            self._graphs[key] = graph
        return self._graphs[key]


class _DecodeGraph:
    """A decode step of one size, with the tensors that it is fed through."""

    def __init__(self, model: PreTrainedModel, step: DecodeStep, device: torch.device) -> None:
        self.step = step
        self._model = model
        self._ids = torch.zeros(step.size, 1, dtype=torch.int64, device=device)
        # transformers builds no mask of its own beside one of four axes, and so does not look
        # at the positions on the host; hybrid attention reads none.
        self._no_mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None

    def run(self, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Logits (B, V) of these rows."""
        self.step.load(rows)
        padded = [*tokens, *[0] * (self.step.size - len(rows))]
        self._ids.copy_(torch.tensor(padded)[:, None])
        if self._graph is None or self._logits is None:
            return self._compute()[: len(rows)]
        self._graph.replay()
        # The next replay writes over what this one gave.
        return self._logits[: len(rows)].clone()

    def capture(self, pool: Any) -> Any:
        """Record the step, with no row in it. Returns the graphs' pool of memory."""
        self.step.load([])
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # compiles kernels, and lets cuBLAS allocate what it works in
                self._compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads, the ones that move snapshots say, may go on using the GPU.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self._logits = self._compute()
        self._graph = graph
        return graph.pool()

    def _compute(self) -> Tensor:
        hidden: Tensor = self._model.base_model(
            input_ids=self._ids,
            position_ids=self.step.position_ids,
            attention_mask=self._no_mask,
            use_cache=False,
            hybrid=self.step,
        ).last_hidden_state
        logits: Tensor = self._model.get_output_embeddings()(hidden[:, -1])
        return logits.float()


def _sizes(num_slots: int) -> list[int]:
    """Powers of 2 below the number of slots, and that number."""
    return [2**n for n in range(num_slots.bit_length()) if 2**n < num_slots] + [num_slots]


def _check_capture(model: PreTrainedModel, device: torch.device) -> None:
    rope_type = (getattr(model.config, "rope_parameters", None) or {}).get("rope_type")
    if rope_type in _LOOKING:
        raise ValueError(
            f"rope_type={rope_type!r} depends on the length at every step, which a CUDA graph "
            "cannot follow; use capture=False"
        )
    if device.type != "cuda":
        raise ValueError(f"capture=True: slots are on {device}; CUDA graphs need a GPU")
