"""Cost of the memory lens: how fast answers decode with frames, without, and without its code.

    python -m benchmarks.lens [--streams 4] [--rounds 9] [--tokens 256]

The embedded model serves under the policy that it carries. In each round the same requests are
answered in turns: with frames (`on`), without them (`off`), and without the code that asks for them
(`plain`). Time is CPU time of one thread, so that other programs do not count. The last line is
JSON: medians over rounds of the speed with frames over `off`, and of `off` over `plain`.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated
from unittest import mock

import typer
from rich.console import Console

from benchmarks.draw import table
from benchmarks.record import write_result
from llamahome.cache import Slots
from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.config.policy import CARRIED
from llamahome.engine import SamplingParams, TextEngine, TokenDelta
from llamahome.engine.request import Request
from llamahome.engine.sampling.sampler import Choice

ARMS = ("on", "off", "plain")
PROMPT = 1000  # tokens, more than most heads hold


def main(
    streams: Annotated[int, typer.Option(help="Requests at once.", min=1)] = 4,
    rounds: Annotated[int, typer.Option(help="Times that each arm runs.", min=1)] = 9,
    tokens: Annotated[int, typer.Option(help="Tokens of an answer.", min=16)] = 256,
) -> None:
    """Time the arms in turns."""
    config = EngineConfig(slots=streams, max_length=2048, num_threads=1)
    engine = TextEngine.load(ModelConfig(), PolicyConfig(name=CARRIED, budget=None), config)
    prompt = engine.encode("one two three four five six seven eight " * 200)[:PROMPT]
    speeds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    frames = 0
    for round_ in range(rounds + 1):
        first = round_ % len(ARMS)
        for arm in ARMS[first:] + ARMS[:first]:
            speed, seen = _run(engine, prompt, arm, streams, tokens)
            if round_:  # the first one warms up
                speeds[arm].append(speed)
                frames += seen
    _report(speeds, streams, frames / rounds / streams)


def _run(
    engine: TextEngine, prompt: list[int], arm: str, streams: int, tokens: int
) -> tuple[float, int]:
    """Return the tokens per second of an arm once all prompts are read, and its frames."""
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, lens=arm == "on")
    for index in range(streams):
        engine.submit(str(index), prompt, params)
    with _without_lens(arm == "plain"):
        begun: set[str] = set()
        while len(begun) < streams:
            begun |= {delta.request_id for delta in engine.step()}
        start, count, frames = time.process_time(), 0, 0
        while engine.has_work:
            for delta in engine.step():
                count += delta.token_count
                frames += delta.lens is not None
    return count / (time.process_time() - start), frames


@contextmanager
def _without_lens(plain: bool) -> Iterator[None]:
    """Let requests take their tokens as they did before there was a lens."""
    if not plain:
        yield
        return

    def take(self: Request, choices: Sequence[Choice], slots: Slots) -> list[TokenDelta]:
        *accepted, last = choices
        self.tokens += [choice.token for choice in accepted if choice.token is not None]
        return [*map(self._delta, accepted), self._last(last)]

    with mock.patch.object(Request, "take", take):
        yield


def over(speeds: dict[str, list[float]], arm: str, base: str) -> float:
    """Return the median over rounds of an arm's speed over that of another."""
    pairs = zip(speeds[arm], speeds[base], strict=True)
    return statistics.median(own / other for own, other in pairs)


def _report(speeds: dict[str, list[float]], streams: int, frames: float) -> None:
    result = {
        "streams": streams,
        "tokens_per_s": {arm: round(statistics.median(own), 1) for arm, own in speeds.items()},
        "frames_per_answer": round(frames, 1),
        "lens_on_ratio": round(over(speeds, "on", "off"), 4),
        "lens_off_ratio": round(over(speeds, "off", "plain"), 4),
    }
    shown = table(f"decoding, {streams} at once", ["arm"], ["tokens/s"])
    for arm, own in speeds.items():
        shown.add_row(arm, f"{statistics.median(own):.1f}")
    Console().print(shown)
    write_result(f"lens-{streams}", result)
    print(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
