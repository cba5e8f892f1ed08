"""Conversations over several replicas: routing by prefix, next to Ray Serve's own by load.

    python -m benchmarks.routing [--replicas 3] [--chats 12] [--turns 5] [--rounds 1]

Each arm is a fresh endpoint of the embedded model. Clients hold conversations of several turns that
share a system prompt, one turn at a time. A later turn is a hit when all of the turn before came
from a snapshot. The last line is JSON.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Sequence
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console

from benchmarks.draw import table
from benchmarks.endpoint import Answer, chat, endpoint
from benchmarks.record import write_result
from llamahome.evaluation.text import load_text

ARMS = ("load", "prefix")
SYSTEM_WORDS, TURN_WORDS, ANSWER_TOKENS = 150, 120, 24


def main(
    replicas: Annotated[int, typer.Option(help="Engine replicas of one thread each.")] = 3,
    chats: Annotated[int, typer.Option(help="Conversations.")] = 12,
    turns: Annotated[int, typer.Option(help="Turns of each.")] = 5,
    clients: Annotated[int, typer.Option(help="Conversations at once.")] = 4,
    rounds: Annotated[int, typer.Option(help="Fresh endpoints of each arm, in turns.")] = 1,
    output: Annotated[Path | None, typer.Option(help="Result file.")] = None,
) -> None:
    """Measure what routing does for the prefix cache."""
    answers: dict[str, list[Answer]] = {arm: [] for arm in ARMS}
    for arm in islice(cycle(ARMS), rounds * len(ARMS)):
        with endpoint(
            f"serve.routing={arm}",
            f"serve.min_replicas={replicas}",
            f"serve.max_replicas={replicas}",
            "serve.cpus_per_replica=0.5",
            "engine.num_threads=1",
            "engine.slots=4",
            "engine.max_length=4096",
        ) as url:
            answers[arm] += asyncio.run(_conversations(url, chats, turns, clients))
    load = {"replicas": replicas, "chats": chats, "turns": turns, "clients": clients}
    result = {**load, "rounds": rounds, **{arm: _summary(answers[arm], turns) for arm in ARMS}}
    _report(result)
    write_result("routing", result, output)
    print(json.dumps(result))


async def _conversations(url: str, chats: int, turns: int, clients: int) -> list[Answer]:
    """Return all answers, turn by turn of one conversation after the other."""
    words = load_text("persuasion").split()
    gate = asyncio.Semaphore(clients)
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def converse(number: int) -> list[Answer]:
            async with gate:
                system = " ".join(words[:SYSTEM_WORDS])
                messages = [{"role": "system", "content": system}]
                answers = []
                for turn in range(turns):
                    begin = SYSTEM_WORDS + (number * turns + turn) * TURN_WORDS
                    asked = " ".join(words[begin : begin + TURN_WORDS])
                    messages.append({"role": "user", "content": asked})
                    answers.append(await chat(client, messages, max_tokens=ANSWER_TOKENS))
                    messages.append({"role": "assistant", "content": answers[-1].text})
                return answers

        return [a for own in await asyncio.gather(*map(converse, range(chats))) for a in own]


def _summary(answers: Sequence[Answer], turns: int) -> dict[str, float]:
    later = [pair for number, pair in enumerate(pairwise(answers), 1) if number % turns]
    read = sum(answer.prompt_tokens for answer in answers)
    waits = sorted(answer.ttft_s for _, answer in later)
    hits = sum(answer.cached_tokens >= before.prompt_tokens for before, answer in later)
    return {
        "answers": len(answers),
        "failed": sum(answer.status != 200 for answer in answers),
        "hit_rate": round(hits / len(later), 3),
        "cached_share": round(sum(a.cached_tokens for a in answers) / read, 3),
        "read_tokens": read - sum(a.cached_tokens for a in answers),
        "ttft_p50_s": round(statistics.median(waits), 3),
        "ttft_p95_s": round(waits[int(0.95 * len(waits))], 3),
    }


def _report(result: dict[str, object]) -> None:
    columns = ("hit rate", "cached tokens", "read", "TTFT p50 s", "p95 s", "failed")
    shown = table(
        f"{result['chats']} conversations of {result['turns']} turns, {result['clients']} at once, "
        f"{result['replicas']} replicas; later turns",
        ["serve.routing"],
        columns,
    )
    for arm in ARMS:
        own = result[arm]
        assert isinstance(own, dict)
        shown.add_row(
            arm,
            f"{own['hit_rate']:.0%}",
            f"{own['cached_share']:.0%}",
            str(own["read_tokens"]),
            f"{own['ttft_p50_s']:.2f}",
            f"{own['ttft_p95_s']:.2f}",
            str(own["failed"]),
        )
    Console().print(shown)


if __name__ == "__main__":
    typer.run(main)
