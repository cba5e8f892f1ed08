"""One run of the benchmark: its cells, their order, and its end."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.engine.arms import Setting, flat_arms
from benchmarks.engine.load import Latency, LoadShape
from benchmarks.engine.measure import Arm, Turns, decode_cell, flat_cell, prefill_cell
from benchmarks.engine.results import DENSE, TENTH, Results
from benchmarks.workload import cut

CROWD = 32  # requests from which memory is short
Cells = Mapping[int, Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Form:
    """Amount of work in a run.

    Attributes:
        headline: context of the ratios at a budget; its cells come first.
        dense_context: context of the ratios of dense decoding.
        first, rest: requests at once, by context; the single figures come in between.
        prefill_rounds: rounds of prefill, by context.
        flat_batch: requests of the cells that show whether cost grows with the context.
        requests: requests of the load.
        windows, window: texts, and tokens of each, whose perplexity shows what int8 costs.
    """

    name: str
    headline: int
    dense_context: int
    first: Cells
    rest: Cells
    prefill_rounds: Mapping[int, int]
    flat_batch: int
    requests: int
    windows: int
    window: int
    turns: Turns = field(default_factory=Turns)
    many: int = 8


FULL = Form(
    name="full",
    headline=4096,
    dense_context=2048,
    first={4096: (1, 8), 2048: (1, 8, 32)},
    rest={256: (1, 8, 32), 8000: (1, 8)},
    prefill_rounds={256: 3, 2048: 3, 4096: 2, 8000: 1},
    flat_batch=8,
    requests=64,
    windows=8,
    window=512,
)
QUICK = Form(
    name="quick",
    headline=1024,
    dense_context=512,
    first={1024: (8,), 512: (1, 8)},
    rest={},
    prefill_rounds={512: 1, 1024: 1},
    flat_batch=1,
    requests=12,
    windows=4,
    window=64,
    turns=Turns(rounds=2, steps=16, seconds=0.5),
)


class Run:
    """One run: the most important cells first, until `minutes` are over."""

    def __init__(
        self,
        form: Form,
        arms: list[Arm],
        setting: Setting,
        ids: list[int],
        *,
        minutes: float,
        say: Callable[[str], None],
    ) -> None:
        self.form, self.arms, self.setting, self.ids = form, arms, setting, ids
        self.say = say
        self._started = time.monotonic()
        self._minutes = minutes
        self.results = Results(
            headline=form.headline, dense_context=form.dense_context, many=form.many
        )

    def all(self) -> Results:
        """Measure everything that there is time for; always end the engines."""
        try:
            self.cells(self.form.first)
            self.single_figures()
            self.cells(self.form.rest)
        finally:
            for arm in self.arms:
                arm.close()
        self.results.missing |= {a.name: a.missing for a in self.arms if a.missing is not None}
        self.results.failures = [line for arm in self.arms for line in arm.failures]
        return self.results

    def cells(self, cells: Cells) -> None:
        for context, batches in cells.items():
            if self.in_time(f"prefill of {context:,} tokens"):
                rounds = self.form.prefill_rounds[context]
                self.results.prefill += prefill_cell(self.arms, context, self.ids, rounds)
            for batch in batches:
                if self.in_time(f"decode of {batch} x {context:,} tokens"):
                    arms = [arm for arm in self.arms if arm.crowd or batch < CROWD]
                    self.results.decode += decode_cell(
                        arms, batch, context, self.ids, self.form.turns
                    )

    def single_figures(self) -> None:
        """Measure the figures that concern our engine alone."""
        own = {arm.name: arm for arm in self.arms}
        if self.in_time("cost by context at one budget"):
            budget = self.form.headline // 10
            arms = flat_arms(self.setting, (1000, 8000), budget)
            self.results.flat = flat_cell(arms, self.form.flat_batch, self.ids, self.form.turns)
        for context in (*self.form.first, *self.form.rest):
            self.slot_bytes(context)
        if self.in_time("perplexity of int8 weights"):
            self.results.int8_ppl_ratio = self.int8(own[DENSE])
        for name in (DENSE, TENTH):
            if self.in_time(f"load, {name}"):
                self.load(own[name])

    def in_time(self, cell: str) -> bool:
        """Announce a cell, or note that there is no time for it."""
        minutes = (time.monotonic() - self._started) / 60
        if minutes > self._minutes:
            self.results.skipped.append(cell)
            return False
        self.say(f"{minutes:5.1f} min  {cell}")
        return True

    def slot_bytes(self, context: int) -> None:
        replies = {
            arm.name: arm.ask("slot bytes", "slot_bytes", context=context)
            for arm in self.arms
            if arm.ours
        }
        found = {name: reply["slot_bytes"] for name, reply in replies.items() if reply}
        self.results.slot_bytes[context] = found
        self.results.runners |= {n: reply["runner"] for n, reply in replies.items() if reply}
        self.results.dense_fp16_bytes[context] = context * fp16_bytes(self.setting.folder)

    def int8(self, arm: Arm) -> float | None:
        windows = [cut(self.ids, self.form.window, n) for n in range(self.form.windows)]
        reply = arm.ask("int8 perplexity", "int8_quality", windows=windows)
        return None if reply is None else float(reply["ratio"])

    def load(self, arm: Arm) -> None:
        shape = LoadShape()
        drawn = random.Random(shape.seed)
        lengths = [drawn.randint(64, shape.longest) for _ in range(self.form.requests)]
        # The same lengths twice: once to find the capacity, once at a share of it.
        prompts = [cut(self.ids, length, n) for n, length in enumerate(2 * lengths)]
        reply = arm.ask("load", "load_test", prompts=prompts, shape=asdict(shape))
        if reply is not None:
            self.results.load[arm.name] = Latency(**reply["latency"])


def fp16_bytes(folder: Path) -> int:
    """Return the bytes of one token's keys and values in float16, as llama.cpp keeps them."""
    config = json.loads((folder / "config.json").read_text())
    width = config["hidden_size"] // config["num_attention_heads"] * config["num_key_value_heads"]
    return 2 * 2 * int(config["num_hidden_layers"]) * int(width)
