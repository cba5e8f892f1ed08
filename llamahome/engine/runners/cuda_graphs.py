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
from llamahome.cache import Slots, StepPlan
from llamahome.cache.decode_step import Counted, DecodeStep, counted
from llamahome.models.head import output_logits

logger = logging.getLogger(__name__)

# transformers' rotary embeddings that read the positions on the host before they rotate.
_READ_ON_HOST = ("dynamic", "longrope")


class DecodeGraphs:
    """Decode steps of a model over its slots, one graph for each batch size. It does no prefill.

    A batch runs in the next larger size, a power of 2 or all slots, filled up with rows that leave
    no trace. On a CPU, or with `capture=False`, the same step is computed without a graph.

    Args:
        slots: of the model, in torch's layout.
        implementation: of the kernels; None is `triton` on a GPU and `torch` elsewhere.
        capture: whether to replay graphs; None does where there is a GPU.

    Raises:
        ValueError: for a model whose step cannot be captured, or a capture without a GPU.
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
        powers = (2**n for n in range(slots.num_slots.bit_length()))
        self.sizes = [*(size for size in powers if size < slots.num_slots), slots.num_slots]
        self._graphs: dict[tuple[int, Counted], _DecodeGraph] = {}
        self._pool: Any = None

    def warm_up(self) -> None:
        """Capture every size for the slots' own policy, so that no request waits for it."""
        # The largest first: the others fit into the memory that it takes.
        counts_mass = counted(self.slots.plan([0], [1]))
        for size in reversed(self.sizes):
            self._graph(size, counts_mass)

    @torch.inference_mode()
    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Run one token for each of some slots, which advance, and return float32 logits (B, V).

        Raises:
            ValueError: for a slot that comes twice or is full.
        """
        plan = self.slots.plan(slots, [1] * len(slots))
        size = next(size for size in self.sizes if size >= len(slots))
        graph = self._graph(size, counted(plan))
        logits = graph.run(plan, tokens)
        self.slots.commit(plan)
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
    """A decode step of one size, with its input and output tensors."""

    def __init__(self, model: PreTrainedModel, step: DecodeStep, device: torch.device) -> None:
        self.step = step
        self._model = model
        self._ids = torch.zeros(step.size, 1, dtype=torch.int64, device=device)
        # Given a mask of four axes, transformers builds none, for which it would look at the
        # positions on the host; hybrid attention reads no mask.
        self._no_mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None

    def run(self, plan: StepPlan, tokens: Sequence[int]) -> Tensor:
        """Compute the logits (B, V) of a plan's rows."""
        self.step.load(plan)
        padded = [*tokens, *[0] * (self.step.size - len(tokens))]
        self._ids.copy_(torch.tensor(padded)[:, None])
        if self._graph is None or self._logits is None:
            return self._compute()[: len(tokens)]
        self._graph.replay()
        # The next replay overwrites these logits.
        return self._logits[: len(tokens)].clone()

    def capture(self, pool: Any) -> Any:
        """Record the step, which has no row yet, and return the graphs' pool of memory."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # compiles kernels, and lets cuBLAS allocate its workspace
                self._compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as the one that moves snapshots, may go on using the GPU.
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
        return output_logits(self._model, hidden[:, -1])


def _check_capture(model: PreTrainedModel, device: torch.device) -> None:
    rope_type = (getattr(model.config, "rope_parameters", None) or {}).get("rope_type")
    if rope_type in _READ_ON_HOST:
        raise ValueError(
            f"rope_type={rope_type!r} depends on the length at every step, which a CUDA graph "
            "cannot follow; use capture=False"
        )
    if device.type != "cuda":
        raise ValueError(f"capture=True: slots are on {device}; CUDA graphs need a GPU")
