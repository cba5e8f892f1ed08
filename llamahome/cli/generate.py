"""`llamahome generate`: one answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamahome.cli import options
from llamahome.cli.texts import check_typed, file_text, stdin_text
from llamahome.config import ModelConfig
from llamahome.config.policy import policy_config

if TYPE_CHECKING:
    from llamahome.engine import SamplingParams, TextEngine, Usage


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads standard input.")],
    model: options.Model = options.EMBEDDED,
    file: Annotated[
        Path | None, typer.Option(help="Put this text file (UTF-8) before the prompt.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text; no chat template.")
    ] = False,
    policy: options.Policy = "carried",
    budget: options.Budget = None,
    sink: options.Sink = None,
    recent: options.Recent = None,
    interval: options.Interval = None,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = None,
    dtype: options.Dtype = "auto",
    max_length: options.MaxLength = 8192,
) -> None:
    """Answer one prompt, streaming, from a KV cache of fixed size.

    Examples:

      llamahome generate 'Why is the sky blue?'

      llamahome generate --file report.txt --budget 512 'Summarise this.'
    """
    with options.plain_errors():
        from llamahome.engine import SamplingParams, TextEngine

        text = stdin_text() if prompt == "-" else check_typed("prompt", prompt)
        if file is not None:
            text = f"{file_text('--file', file)}\n\n{text}"
        params = SamplingParams(
            max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed
        )
        engine = TextEngine.load(
            ModelConfig(name=model, dtype=dtype),
            policy_config(policy, budget, sink, recent, interval, max_length),
            options.one_slot(max_length),
        )
        ids = engine.encode(text) if raw else engine.encode_chat([user(text)])
        _, usage = stream_answer(engine, ids, params)
    typer.secho(f"[{describe(usage)}]", fg="bright_black", err=True)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def stream_answer(
    engine: TextEngine, prompt: list[int], params: SamplingParams
) -> tuple[str, Usage]:
    """Print an answer as it is generated; return the whole text and its usage.

    Raises:
        EngineError: when the engine refuses the request, or its answer fails.
    """
    from llamahome.engine import EngineError

    engine.submit("terminal", prompt, params)
    answer = ""
    try:
        while True:
            for delta in engine.step():
                answer += delta.text
                typer.echo(delta.text, nl=False)
                if delta.error is not None:
                    raise EngineError(delta.error)
                if delta.usage is not None:
                    typer.echo()
                    return answer, delta.usage
    finally:
        engine.cancel("terminal")


def describe(usage: Usage) -> str:
    return (
        f"{usage.prompt_tokens} + {usage.completion_tokens} tokens, "
        f"{usage.kept_tokens} kept, {usage.evicted_tokens} evicted, "
        f"KV {usage.kv_bytes / 2**20:.1f} MiB (dense {usage.kv_bytes_dense / 2**20:.1f} MiB)"
    )
