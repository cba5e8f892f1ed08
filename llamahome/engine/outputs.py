"""What an engine gives: deltas of its requests, and numbers about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from llamahome.cache import Slots, SnapshotStats
from llamahome.engine.sampling.logprobs import Logprob, TopLogprobs
from llamahome.engine.scheduler import Request
from llamahome.requests import Usage

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, kw_only=True)
class TokenDelta:
    """A token that a step gave a request. `finish_reason` and `usage` are set on its last.

    `logprob` and `top_logprobs`, the likeliest first, are there when `params.logprobs` is, and on
    the first delta `prompt_logprobs` when `params.prompt_logprobs` is. `embedding` is the outcome
    of `submit_embedding`: float32 (hidden,).
    """

    request_id: str
    token: int | None
    logprob: float | None = None
    top_logprobs: TopLogprobs = ()
    prompt_logprobs: tuple[Logprob, ...] = ()
    embedding: Tensor | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: str | None = None


@dataclass(kw_only=True)
class EngineStats:
    """Counters since the start, and what is in use now. Bytes are as allocated.

    Attributes:
        runner: how it computes: the C++ kernels, their instruction set and precisions, or torch.
        drafted_tokens, accepted_tokens: guessed ahead, and those of them that were right.
        prefix_*: of prefix snapshots: prompts that began from one or not, tokens they spared,
            bytes in memory and in the folder.
    """

    slots: int
    kv_bytes: int
    runner: str = ""
    slots_used: int = 0
    queued: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    evicted_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    requests_finished: int = 0
    requests_cancelled: int = 0
    requests_failed: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0
    prefix_hit_tokens: int = 0
    prefix_bytes: int = 0
    prefix_disk_bytes: int = 0

    def note_prefixes(self, stats: SnapshotStats) -> None:
        self.prefix_hits = stats.hits
        self.prefix_misses = stats.misses
        self.prefix_hit_tokens = stats.hit_tokens
        self.prefix_bytes = stats.bytes
        self.prefix_disk_bytes = stats.disk_bytes


def usage_of(request: Request, slots: Slots) -> Usage:
    """What a request, waiting or running, has taken so far."""
    held = 0 if request.slot is None else slots.held(request.slot)
    return Usage(
        prompt_tokens=request.prompt_length,
        completion_tokens=request.generated,
        kept_tokens=held,
        evicted_tokens=request.computed - held,
        peak_tokens=0 if request.slot is None else slots.peak(request.slot),
        cached_tokens=request.restored,
        kv_bytes=slots.slot_nbytes,
        kv_bytes_dense=slots.dense_nbytes(len(request.tokens)),
    )
