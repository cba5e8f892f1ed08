"""Prompts in turns, as the engine read them before: what the present order is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llamahome.config import EngineConfig
from llamahome.engine import Engine
from llamahome.engine.pace import Pace
from llamahome.engine.request import Request
from llamahome.engine.scheduler import Batch, Scheduler


class InTurns(Scheduler):
    """Each step reads a chunk of every prompt, up to `prefill_tokens`, the latest served last."""

    def batch(self, room: Callable[[int], int]) -> Batch | None:
        batch = super().batch(room)
        for request in batch.requests if batch else ():
            if request.prefilling:
                request.read_before = self.read_tokens
        return batch

    def _turn(self, request: Request) -> int:
        return request.read_before

    def _share(self, decoding: int, pieces: Mapping[Request, int]) -> int:
        return self.prefill_tokens


def read_in_turns(engine: Engine, config: EngineConfig) -> Engine:
    """Return an idle engine that reads prompts in turns from now on."""
    engine._scheduler = InTurns(
        config.slots,
        max_queued=config.max_queued,
        max_queued_tokens=config.max_queued_tokens,
        prefill_tokens=config.prefill_tokens,
        chunk=engine._slots.policy.interval,
        pace=Pace(config.slowdown),
    )
    return engine
