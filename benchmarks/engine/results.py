"""Results of a run, and the ratios between engines."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.engine.load import Latency

DENSE, TENTH, FIFTH = "ours full", "ours 10 %", "ours 20 %"
OURS = (DENSE, FIFTH, TENTH)


@dataclass(frozen=True, kw_only=True)
class Decode:
    """Decode of `batch` requests at once, after `context` tokens each, by one engine.

    Attributes:
        rounds: tokens per second of all requests together, one figure a turn.
        peak_mib: peak resident memory while it decoded.
        kv_bytes: KV memory of all requests.
    """

    arm: str
    batch: int
    context: int
    rounds: list[float]
    peak_mib: float
    kv_bytes: int

    @property
    def tokens_per_second(self) -> float:
        return statistics.median(self.rounds)


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """Prefill of one prompt by one engine; `rounds` are tokens per second."""

    arm: str
    context: int
    rounds: list[float]
    peak_mib: float

    @property
    def tokens_per_second(self) -> float:
        return statistics.median(self.rounds)


@dataclass(kw_only=True)
class Results:
    """Everything that a run measured.

    Attributes:
        headline: context of the ratios at a budget, and of prefill.
        dense_context: context of the ratios of dense decoding.
        many: requests at once of the headline.
        slot_bytes: KV memory of one request, mass and positions included, by context and arm.
        dense_fp16_bytes: the same of a dense float16 cache, by context.
        runners: runner of our engine, by arm.
        flat: seconds per token at a fixed budget, by context.
        load: latencies, by arm.
        int8_ppl_ratio: perplexity with int8 weights over that with float32.
        missing: engines that were not measured, and why.
        failures: cells that an engine failed in.
        skipped: cells that there was no time for.
    """

    headline: int
    dense_context: int
    many: int
    decode: list[Decode] = field(default_factory=list)
    prefill: list[Prefill] = field(default_factory=list)
    slot_bytes: dict[int, dict[str, int]] = field(default_factory=dict)
    dense_fp16_bytes: dict[int, int] = field(default_factory=dict)
    runners: dict[str, str] = field(default_factory=dict)
    flat: dict[int, float] = field(default_factory=dict)
    load: dict[str, Latency] = field(default_factory=dict)
    int8_ppl_ratio: float | None = None
    missing: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def decoded(self, arm: str, batch: int, context: int) -> float | None:
        """Return tokens per second, or None if that was not measured."""
        found = (d for d in self.decode if (d.arm, d.batch, d.context) == (arm, batch, context))
        return next((d.tokens_per_second for d in found), None)

    def prefilled(self, arm: str, context: int) -> float | None:
        found = (p for p in self.prefill if (p.arm, p.context) == (arm, context))
        return next((p.tokens_per_second for p in found), None)

    def arms(self) -> list[str]:
        """Return the arms that decoded, in that order."""
        return list(dict.fromkeys(d.arm for d in self.decode))

    def peers(self, name: str = "") -> list[str]:
        """Return the arms that are not ours: all, or those of one engine."""
        return [arm for arm in self.arms() if arm not in OURS and arm.startswith(name)]


def ratios(results: Results, engines: Sequence[str]) -> dict[str, object]:
    """Return our figures over the peers'; None where a side is missing.

    The fastest arm of an engine stands for it.
    """
    headline, many = results.headline, results.many

    def decode(ours: str, peer: str, batch: int, context: int) -> float | None:
        theirs = (results.decoded(arm, batch, context) for arm in results.peers(peer))
        return over(results.decoded(ours, batch, context), best(theirs))

    dense = results.dense_context
    prefill = best(results.prefilled(arm, headline) for arm in results.peers())
    slots = results.slot_bytes.get(headline, {})
    longest = results.slot_bytes.get(max(results.slot_bytes, default=headline), {})
    return {
        "decode_ratio": {peer: decode(TENTH, peer, many, headline) for peer in engines},
        "dense_ratio_llama_cpp_b1": decode(DENSE, "llama_cpp", 1, dense),
        "dense_ratio_llama_cpp_b8": decode(DENSE, "llama_cpp", many, dense),
        "prefill_ratio_best_peer": over(results.prefilled(TENTH, headline), prefill),
        "requests_ratio_dense": over(longest.get(DENSE), longest.get(TENTH)),
        "requests_ratio_dense_headline": over(slots.get(DENSE), slots.get(TENTH)),
        "requests_ratio_dense_fp16": over(results.dense_fp16_bytes.get(headline), slots.get(TENTH)),
        "flatness": over(results.flat.get(8000), results.flat.get(1000)),
        "int8_ppl_ratio": results.int8_ppl_ratio,
        "peers_missing": results.missing,
    }


def over(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours / theirs


def best(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
