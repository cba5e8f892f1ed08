"""Fine-tune the embedded model under a KV budget, serve it, and ask it a question.

`make quickstart` runs this. It runs the commands that a user would type, and stops what it started.
The last line is one JSON object.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI
from rich.console import Console
from rich.table import Table

from llamahome.config import PolicyConfig
from llamahome.models import ModelManager
from train import metrics

ROOT = Path(__file__).resolve().parent
CONVERSATIONS = ROOT / "datasets" / "wordnet_eval.jsonl"
QUESTION = 'What does the noun "harbor" mean?'
START_LIMIT_S = 180

console = Console(soft_wrap=True)


def main() -> None:
    began = time.monotonic()
    run = f"quickstart-{time.strftime('%Y%m%d-%H%M%S')}"
    loss_before, loss_after = train(run)
    policy = carried_policy(run)
    with served(run) as url:
        answer, usage = ask(url, run, policy)
    loss = f"{loss_before:.3f} -> {loss_after:.3f}"
    show(loss, usage, policy, time.monotonic() - began)
    result = {
        "loss_before": loss_before,
        "loss_after": loss_after,
        "prompt_tokens": usage["prompt_tokens"],
        "budget": policy.budget,
        "kv_bytes": usage["llamahome"]["kv_bytes"],
        "kv_bytes_dense": usage["llamahome"]["kv_bytes_dense"],
        "answer": answer,
    }
    sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")


def train(run: str) -> tuple[float, float]:
    """Fine-tune, and return the held-out loss before and after."""
    say("1/3", "fine-tuning the embedded model on WordNet instructions under H2O eviction")
    command = [sys.executable, "-m", "train", "experiment=quickstart", f"trainer.run_name={run}"]
    subprocess.run(command, cwd=ROOT, check=True)
    held_out = metrics.series(metrics.read(ModelManager().runs_dir / run), "eval_loss")
    return held_out[0], held_out[max(held_out)]


def carried_policy(run: str) -> PolicyConfig:
    policy = ModelManager().describe(run).policy
    if policy is None or policy.budget is None:
        raise SystemExit(f"error: the checkpoint of {run} carries no policy with a budget")
    return policy


@contextmanager
def served(run: str) -> Iterator[str]:
    """Serve `run` for the length of the block, and yield the endpoint's address."""
    say("2/3", "serving the fine-tuned model with Ray Serve")
    url = f"http://127.0.0.1:{free_port()}"
    port = url.rpartition(":")[2]
    command = [sys.executable, "-m", "serve", f"model.name={run}", f"serve.port={port}"]
    server = subprocess.Popen(command, cwd=ROOT)
    try:
        wait_until_healthy(url, server)
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


def wait_until_healthy(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"error: the server ended with code {server.returncode}")
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.5)
    raise SystemExit(f"error: {url} did not become healthy within {START_LIMIT_S} s")


def ask(url: str, model: str, policy: PolicyConfig) -> tuple[str, dict[str, Any]]:
    """Stream an answer to a conversation longer than the budget; return it and its usage."""
    messages = [*long_conversation(), {"role": "user", "content": QUESTION}]
    say("3/3", f"asking after {len(messages) - 1} messages of context, budget {policy.budget}")
    console.print(f"[bold]{QUESTION}[/bold]")
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    answer, usage = "", {}
    stream = client.chat.completions.create(  # type: ignore[call-overload]  # plain dicts
        model=model,
        messages=messages,
        max_tokens=64,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.choices and (text := chunk.choices[0].delta.content):
            answer += text
            console.print(text, end="", markup=False, highlight=False)
        if chunk.usage is not None:
            usage = chunk.usage.model_dump()
    console.print()
    return answer, usage


def long_conversation(turns: int = 40) -> list[dict[str, str]]:
    """Join held-out conversations."""
    messages: list[dict[str, str]] = []
    with CONVERSATIONS.open(encoding="utf-8") as lines:
        for line in lines:
            messages += json.loads(line)["messages"]
            if len(messages) >= turns:
                break
    return messages


def show(loss: str, usage: dict[str, Any], policy: PolicyConfig, seconds: float) -> None:
    kept = usage["llamahome"]
    table = Table(title=f"Done in {seconds:.0f} s", show_header=False)
    for label, text in (
        ("held-out loss", loss),
        ("context", f"{usage['prompt_tokens']} tokens, of which {kept['evicted_tokens']} evicted"),
        ("budget", f"{policy.budget} entries per KV head ({policy.name})"),
        ("KV memory", f"{kept['kv_bytes'] / 2**20:.1f} MiB, however long the conversation gets"),
        ("a dense cache", f"{kept['kv_bytes_dense'] / 2**20:.1f} MiB by now, and growing"),
    ):
        table.add_row(label, text)
    console.print(table)


def say(step: str, what: str) -> None:
    console.print(f"\n[bold cyan]{step}[/bold cyan] {what}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
