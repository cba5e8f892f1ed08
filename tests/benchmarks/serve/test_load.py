"""Figures of the shell's cost, and the client that takes them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks.engine.load import Timeline
from benchmarks.process import PeerError
from benchmarks.serve.__main__ import Runs, faults, summary
from benchmarks.serve.http import HttpClient
from benchmarks.serve.load import Figures, Form, figures, median

HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
PARTS = [b'data: {"text": "a"}\n\n', b'data: {"usage": {"completion_tokens": 2}}\n\n']


def test_figures_count_tokens_and_not_chunks() -> None:
    lines = [Timeline(arrived=1.0, tokens=[1.5, 3.0]), Timeline(arrived=1.0, tokens=[2.0, 5.0])]
    own = figures(lines, answer=4, cpu_s={"ingress": 0.002})
    assert own.throughput == 8 / 4
    assert own.ttft_ms == 750
    assert own.tpot_ms == 750
    assert own.cpu_ms == {"ingress": 250.0}


def run(throughput: float, ttft: float, **cpu: float) -> Figures:
    return Figures(throughput=throughput, ttft_ms=ttft, tpot_ms=1.0, cpu_ms=cpu)


def test_ratios_are_taken_within_a_round() -> None:
    # The machine is half as fast in the second round.
    raw = [run(1000, 10, process=900), run(500, 20, process=900), run(1000, 10, process=900)]
    http = [run(900, 20, replica=1000, ingress=90, rest=9)] * 3
    http[1] = run(450, 40, replica=1000, ingress=90, rest=9)
    runs = {
        "raw": Runs(many=raw, single=raw),
        "asgi": Runs(many=raw, single=raw),
        "http": Runs(many=http, single=http),
    }
    found = summary(runs)
    assert found["shell_throughput_ratio"] == 0.9
    assert found["shell_ttft_ms"] == 10
    assert found["ttft_vs_vllm"] is None
    cpu = {"ingress": 90, "rest": 9, "replica beyond raw": 100, "raw": 900}
    assert found["shell_cpu_ms_per_1000"] == cpu
    assert median(raw).throughput == 1000


def test_no_two_prompts_are_the_same() -> None:
    form = Form(streams=3, single=2, prompt=4)
    ids = list(range(100_000))
    prompts = [tuple(p) for n in range(3) for part in form.prompts(ids, n) for p in part]
    assert len({prompt[0] for prompt in prompts}) == 15


def test_faults_are_read_from_a_result_of_chaos(tmp_path: Path) -> None:
    file = tmp_path / "chaos.json"
    kept = {"date": "2026-11-28", "failover_lost": 0, "recovery_s": {"engine": 0.5}, "faults": []}
    file.write_text(json.dumps(kept))
    found = faults(file)
    assert found["recovery_s"] == {"engine": 0.5}
    assert found["faults_from"] == "chaos.json, 2026-11-28"


async def ask(answer: int, *parts: bytes) -> Timeline:
    """Ask a server that answers any request with `parts`, one after the other."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = HttpClient(f"http://127.0.0.1:{port}", "m")
        return (await client.one_by_one([[1, 2]], answer))[0]


async def test_a_whole_answer_is_timed() -> None:
    line = await ask(2, HEAD, *PARTS, b"data: [DONE]\n\n")
    assert line.arrived < line.tokens[0] <= line.tokens[-1]


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        (2, [HEAD, *PARTS]),
        (3, [HEAD, *PARTS, b"data: [DONE]\n\n"]),
        (2, [b"HTTP/1.1 429 \r\n\r\n{}"]),
    ],
    ids=["cut", "another length", "refused"],
)
async def test_any_other_answer_is_an_error(answer: int, parts: list[bytes]) -> None:
    with pytest.raises(PeerError):
        await ask(answer, *parts)
