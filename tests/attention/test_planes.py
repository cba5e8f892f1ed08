"""The split of a layer's heads into planes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llamahome.attention.planes import attend_by_plane


@dataclass(frozen=True)
class Heads:
    heads: tuple[int, ...]


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Return query (1, 8, 3, 2), key and value (1, 4, 3, 2)."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, 3, 2, generator=generator).requires_grad_() for heads in (8, 4, 4)
    )
    return query, key, value


def _mixed(planes: list[Heads], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    def attend(plane: Heads, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert (query.shape[1], key.shape[1]) == (2 * len(plane.heads), len(plane.heads))
        return query * (key + value.square()).repeat_interleave(2, dim=1)

    return attend_by_plane(planes, query, key, value, attend)


def test_heads_in_planes_are_those_of_one_plane_and_so_are_their_gradients() -> None:
    found: list[Tensor | None] = []
    expected: list[Tensor | None] = []
    for results, heads in ((found, [(2, 0), (1,), (3,)]), (expected, [(0, 1, 2, 3)])):
        inputs = _inputs()
        out = _mixed([Heads(own) for own in heads], *inputs)
        out.square().sum().backward()
        results += [out, *(each.grad for each in inputs)]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)


def test_a_split_made_in_inference_mode_has_gradients_later() -> None:
    planes = [Heads((3,)), Heads((0, 1, 2))]
    with torch.inference_mode():
        _mixed(planes, *_inputs())
    query, key, value = _inputs()
    _mixed(planes, query, key, value).sum().backward()
    assert query.grad is not None
