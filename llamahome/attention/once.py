"""Activation checkpointing that walks once.

torch computes a layer a second time on the way back, from the same inputs to the same bits. The
walk need not be: what it found going forward is recorded, one output and some positions a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from typing import Any

Mode = Callable[[Callable[[], Any]], Any]


def _compute(compute: Callable[[], Any]) -> Any:
    return compute()


_mode: ContextVar[Mode] = ContextVar("mode", default=_compute)


def once(compute: Callable[[], Any]) -> Any:
    """Return what `compute` returns, or what it returned when this layer was computed before."""
    return _mode.get()(compute)


def walk_once() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return contexts for a forward pass and its recomputation.

    It is the argument `context_fn` of `torch.utils.checkpoint.checkpoint`, so of
    `model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": walk_once})`.
    """
    results: list[Any] = []

    def recording() -> Mode:
        results.clear()

        def record(compute: Callable[[], Any]) -> Any:
            results.append(compute())
            return results[-1]

        return record

    def replaying() -> Mode:
        recorded = iter(results)
        return lambda compute: next(recorded)

    return _Within(recording), _Within(replaying)


class _Within(AbstractContextManager[None]):
    """Context of one mode, begun anew whenever it is entered: a graph may be walked back twice."""

    def __init__(self, begin: Callable[[], Mode]) -> None:
        self._begin = begin
        self._token: Token[Mode] | None = None

    def __enter__(self) -> None:
        self._token = _mode.set(self._begin())

    def __exit__(self, *error: object) -> None:
        assert self._token is not None
        _mode.reset(self._token)
