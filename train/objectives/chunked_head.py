"""The output layer over chunks of positions, so that the logits of a batch are never whole.

8,192 labels have 4 GiB of logits in float32 for a vocabulary of 128k, and their gradient as many.
Here one chunk of them exists at a time; going back, it is computed again.

Axes: B sequences, T tokens, N labels, R of them in a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from llamahome.attention import Documents, HybridAttention
from llamahome.data import IGNORED
from llamahome.models.head import scaled_logits
from train.data import Batch

CHUNK = 2**26  # logits: 256 MiB in float32

Columns = tuple[Tensor, ...]
Result = TypeVar("Result")


@dataclass(frozen=True)
class ChunkedHead:
    """The output layer of a model.

    It calls the model's own module, which ZeRO-3 gathers and which may hold adapters.

    Attributes:
        chunk: logits at a time.
    """

    model: PreTrainedModel
    chunk: int = CHUNK

    def logits(self, states: Tensor) -> Tensor:
        """Return logits (R, V) of last hidden states (R, H), scaled and capped by the model."""
        head: Any = self.model.get_output_embeddings()
        return scaled_logits(self.model, head(states))

    def over(
        self, states: Tensor, read: Callable[[Tensor, slice], Columns]
    ) -> list[tuple[Tensor, ...]]:
        """Return `read(logits, rows)` of each chunk of `states` (N, H).

        A single chunk keeps its logits for the way back. Several would keep all of them, so theirs
        are computed again.
        """
        rows = max(1, self.chunk // self.model.config.vocab_size)
        count = self._agreed(max(1, -(-len(states) // rows)), states.device)
        parts = [slice(i * rows, (i + 1) * rows) for i in range(count)]

        def one(states: Tensor, part: slice) -> Columns:
            return read(self.logits(states), part)

        if count == 1 or not torch.is_grad_enabled():
            return [one(states[part], part) for part in parts]
        # Not the reentrant kind, whose gradients DeepSpeed would reduce once for each chunk.
        return [checkpoint(one, states[part], part, use_reentrant=False) for part in parts]

    def _agreed(self, chunks: int, device: torch.device) -> int:
        """Return the most chunks of any worker, under ZeRO-3: a call gathers with all of them."""
        head: Any = self.model.get_output_embeddings()
        if not any(hasattr(weight, "ds_id") for weight in head.parameters()):
            return chunks
        most = torch.tensor(chunks, device=device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)


Read = Callable[[Tensor, ChunkedHead], Result]


def attach_chunked_head(model: PreTrainedModel, chunk: int = CHUNK) -> None:
    """Let the forward of `model` take `places` and `read`, which go before its own logits.

    It then returns `read(states, head)` of the last hidden states (N, H) at these places.
    """
    plain, head = model.forward, ChunkedHead(model, chunk)

    def forward(
        *args: Any,
        places: tuple[Tensor, Tensor] | None = None,
        read: Read[Any] | None = None,
        **options: Any,
    ) -> Any:
        if places is None or read is None:
            return plain(*args, **options)
        given = {name: value for name, value in options.items() if value is not None}
        return read(model.base_model(*args, **given).last_hidden_state[places], head)

    model.forward = forward


def at_labels(
    engine: Callable[..., Any], batch: Batch, attention: HybridAttention, read: Read[Result]
) -> Result:
    """Return `read(states, head)` of the hidden states (N, H) that predict the labels of `batch`.

    Args:
        engine: a model with `attach_chunked_head`, or what wraps it.
    """
    if "documents" in batch:
        attention = attention.over(Documents.of(batch["documents"]))
    result: Result = engine(
        input_ids=batch["input_ids"],
        position_ids=attention.position_ids(batch["input_ids"]),
        use_cache=False,
        hybrid=attention,
        places=label_places(batch),
        read=read,
    )
    return result


def label_places(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the row and the position (N,) of each token that predicts a label: the one before."""
    row, position = (batch["labels"][:, 1:] != IGNORED).nonzero(as_tuple=True)
    return row, position


def label_tokens(batch: Batch) -> Tensor:
    """Return the labels (N,), in the order of their places."""
    row, position = label_places(batch)
    return batch["labels"][row, position + 1]


def summed(chunks: Sequence[Columns]) -> list[Tensor]:
    """Return each column's sum over chunks."""
    return [torch.stack(column).sum(dim=0) for column in zip(*chunks, strict=True)]
