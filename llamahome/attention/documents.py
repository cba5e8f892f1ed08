"""Documents packed into one row: each attends, and is evicted from, as if it were alone.

Axes: B rows, N tokens of a row, M documents of a group, L tokens of its longest one, H heads,
D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Documents:
    """Rows of documents, taken apart for attention and put together after it.

    Attributes:
        positions: (B, N), each token's place in its own document.
        groups: (M, L) each, indices into the tokens of all rows, for documents of similar length;
            a shorter one goes on with its last token, which nothing that is real depends on.
        order: (B * N), where the groups, one after another, have each token.
    """

    positions: Tensor
    groups: tuple[Tensor, ...]
    order: Tensor

    @classmethod
    def of(cls, numbers: Tensor) -> Documents:
        """Find the documents of rows.

        Args:
            numbers: (B, N), the number of each token's document; those next to each other differ.
        """
        starts = torch.ones_like(numbers, dtype=torch.bool)
        starts[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
        first = starts.flatten().nonzero().squeeze(1)
        lengths = torch.diff(first, append=first.new_tensor([numbers.numel()]))
        places = torch.arange(numbers.numel(), device=numbers.device)
        positions = places - first.repeat_interleave(lengths)
        groups, order, taken = [], torch.empty_like(places), 0
        for members in _similar(lengths.tolist()):
            own, longest = first[members], int(lengths[members].max())
            columns = torch.arange(longest, device=numbers.device)
            last = (lengths[members] - 1).unsqueeze(1)
            index = own.unsqueeze(1) + columns.minimum(last)
            real = (columns <= last).flatten()
            order[index.flatten()[real]] = taken + real.nonzero().squeeze(1)
            groups.append(index)
            taken += index.numel()
        return cls(positions.view_as(numbers), tuple(groups), order)

    def attend(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend in each document apart: (B, H, N, D), differentiable.

        Args:
            attend: from query, key and value, (M, H, L, D), to the output.
            query: (B, H, N, D); key and value have the heads that the model gives them.
        """
        flat = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
        outputs = []
        for group in self.groups:
            own = (x[group].transpose(1, 2) for x in flat)
            outputs.append(attend(*own).transpose(1, 2).flatten(0, 1))
        out = torch.cat(outputs).index_select(0, self.order)
        return out.view(*self.positions.shape, *out.shape[1:]).transpose(1, 2)


def _similar(lengths: list[int]) -> list[list[int]]:
    """Return documents in groups in which none is twice as long as another."""

    def size(document: int) -> int:
        return lengths[document].bit_length()

    return [list(group) for _, group in groupby(sorted(range(len(lengths)), key=size), key=size)]
