"""A step of load on an endpoint that scales: replicas, queue and time to first token over time.

    python -m benchmarks.scaling [--replicas 3] [--quiet 20] [--step 60] [--after 60] [--clients 6]

One client, then many, then one again ask the embedded model for short answers; a few long streams
begin as the step ends, and must end whole. The plot goes to `--plot`; the last line
is JSON. With all replicas on one machine, more of them add slots and not speed.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console

from benchmarks.draw import plotted, table
from benchmarks.endpoint import Answer, chat, endpoint, metrics
from benchmarks.record import write_result
from llamahome.evaluation.text import load_text

SLOTS = 2
UPSCALE_DELAY_S, DOWNSCALE_DELAY_S, TARGET_TTFT_S = 2, 10, 2.0
PROMPT_WORDS, ANSWER_TOKENS, LONG_TOKENS = 150, 32, 600
PERIOD_S = 0.5


@dataclass(frozen=True)
class State:
    """The endpoint at one moment, in seconds since the load began."""

    second: float
    replicas: float
    running: float
    queued: float
    queued_tokens: float


@dataclass(frozen=True)
class Phase:
    """A load that holds for some time."""

    name: str
    seconds: float
    clients: int


def main(
    replicas: Annotated[int, typer.Option(help="Most replicas, of one thread each.")] = 3,
    quiet: Annotated[float, typer.Option(help="Seconds of one client before the step.")] = 20,
    step: Annotated[float, typer.Option(help="Seconds of many clients.")] = 60,
    after: Annotated[float, typer.Option(help="Seconds of one client afterwards.")] = 60,
    clients: Annotated[int, typer.Option(help="Clients during the step.")] = 6,
    plot: Annotated[Path, typer.Option(help="PNG file.")] = Path("docs/images/scaling.png"),
    output: Annotated[Path | None, typer.Option(help="Result file.")] = None,
) -> None:
    """Measure how replicas follow a step of load."""
    phases = [Phase("quiet", quiet, 1), Phase("step", step, clients), Phase("after", after, 1)]
    with endpoint(
        f"serve.max_replicas={replicas}",
        f"serve.upscale_delay_s={UPSCALE_DELAY_S}",
        f"serve.downscale_delay_s={DOWNSCALE_DELAY_S}",
        f"serve.target_ttft_s={TARGET_TTFT_S}",
        "serve.cpus_per_replica=0.5",
        "engine.num_threads=1",
        f"engine.slots={SLOTS}",
        "engine.max_length=2048",
    ) as url:
        answers, long, states = asyncio.run(_run(url, phases))
    result = _summary(phases, answers, long, states)
    _report(result)
    _plot(plot, phases, answers, states)
    write_result("scaling", {**result, "states": [asdict(state) for state in states]}, output)
    print(json.dumps(result))


async def _run(url: str, phases: Sequence[Phase]) -> tuple[list[Answer], list[Answer], list[State]]:
    """Return the short answers, the long ones, and the states, with times since the beginning."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        start = time.perf_counter()
        states: list[State] = []
        watching = asyncio.create_task(_watch(client, start, states))
        answers: list[Answer] = []
        long: list[asyncio.Task[Answer]] = []
        end = start
        for phase in phases:
            end += phase.seconds
            if phase.name == "after":
                long = [
                    asyncio.create_task(_ask(client, number, LONG_TOKENS))
                    for number in range(phases[1].clients // 2)
                ]
            own = [_client(client, number, end) for number in range(phase.clients)]
            answers += [a for several in await asyncio.gather(*own) for a in several]
        streams = list(await asyncio.gather(*long))
        watching.cancel()
        await asyncio.wait({watching})
    return [_since(a, start) for a in answers], streams, states


def _since(answer: Answer, start: float) -> Answer:
    return Answer(**{**asdict(answer), "begin": answer.begin - start})


async def _client(client: httpx.AsyncClient, number: int, end: float) -> list[Answer]:
    answers: list[Answer] = []
    while time.perf_counter() < end:
        answers.append(await _ask(client, number * 50 + len(answers), ANSWER_TOKENS))
    return answers


async def _ask(client: httpx.AsyncClient, number: int, tokens: int) -> Answer:
    words = load_text("persuasion").split()
    begin = number * PROMPT_WORDS % (len(words) - PROMPT_WORDS)
    content = " ".join(words[begin : begin + PROMPT_WORDS])
    return await chat(client, [{"role": "user", "content": content}], max_tokens=tokens)


async def _watch(client: httpx.AsyncClient, start: float, states: list[State]) -> None:
    while True:
        found = await metrics(client)
        names = ("replicas", "llamahome_slots_used", "llamahome_queued", "llamahome_queued_tokens")
        second = time.perf_counter() - start
        states.append(State(second, *(found.get(name, 0.0) for name in names)))
        await asyncio.sleep(PERIOD_S)


def _summary(
    phases: Sequence[Phase], answers: Sequence[Answer], long: Sequence[Answer], states: list[State]
) -> dict[str, object]:
    step, after = phases[0].seconds, phases[0].seconds + phases[1].seconds
    most = max(state.replicas for state in states)
    grown = next(state.second for state in states if state.replicas == most)
    shrunk = [state.second for state in states if state.second > after and state.replicas == 1]
    everywhere = [*answers, *long]
    late = [a.ttft_s for a in answers if grown <= a.begin < after]
    early = [a.ttft_s for a in answers if step <= a.begin < grown]
    return {
        "clients": phases[1].clients,
        "answers": len(everywhere),
        "failed": sum(answer.status != 200 for answer in everywhere),
        "long_streams": len(long),
        "long_streams_cut": sum(answer.status != 200 for answer in long),
        "most_replicas": int(most),
        "first_replica_more_s": round(
            next((s.second for s in states if s.replicas > 1), step) - step, 1
        ),
        "most_replicas_after_s": round(grown - step, 1),
        "one_replica_after_s": round(shrunk[0] - after, 1) if shrunk else None,
        "ttft_p50_s": {
            "before the step": _median([a.ttft_s for a in answers if a.begin < step]),
            "until all replicas run": _median(early),
            "with all replicas": _median(late),
        },
    }


def _median(values: Sequence[float]) -> float | None:
    return round(statistics.median(values), 2) if values else None


def _report(result: dict[str, object]) -> None:
    shown = table("a step of load", ["figure"], ["value"])
    for name, value in result.items():
        shown.add_row(name.replace("_", " "), str(value))
    Console().print(shown)


def _plot(
    file: Path, phases: Sequence[Phase], answers: Sequence[Answer], states: Sequence[State]
) -> None:
    seconds = [state.second for state in states]
    with plotted(file, 3, (13, 3.6), sharex=True) as (replicas, queue, ttft):
        replicas.step(seconds, [state.replicas for state in states], where="post")
        replicas.set(title="replicas", ylim=(0, None))
        queue.step(seconds, [s.running + s.queued for s in states], where="post", label="open")
        queue.step(seconds, [state.queued for state in states], where="post", label="waiting")
        queue.set(title="requests")
        queue.legend()
        good = [answer for answer in answers if answer.status == 200]
        ttft.plot([a.begin for a in good], [a.ttft_s for a in good], ".", markersize=4)
        ttft.axhline(TARGET_TTFT_S, linestyle=":", color="gray")
        ttft.set(title="time to first token, s", ylim=(0, None))
        for axes in (replicas, queue, ttft):
            axes.set_xlabel("s")
            axes.grid(alpha=0.3)
            axes.axvspan(phases[0].seconds, phases[0].seconds + phases[1].seconds, alpha=0.08)


if __name__ == "__main__":
    typer.run(main)
