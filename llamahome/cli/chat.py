"""`llamahome chat`: a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llamahome.cli import options
from llamahome.cli.generate import describe, stream_answer, user
from llamahome.cli.texts import CURE, check_typed
from llamahome.config import ConfigError, ModelConfig
from llamahome.config.policy import policy_config

if TYPE_CHECKING:
    from llamahome.engine import SamplingParams, TextEngine


def chat(
    model: options.Model = options.EMBEDDED,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    policy: options.Policy = "carried",
    budget: options.Budget = None,
    sink: options.Sink = None,
    recent: options.Recent = None,
    interval: options.Interval = None,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.2,
    top_p: options.TopP = 0.9,
    seed: options.Seed = None,
    max_length: options.MaxLength = 8192,
    dtype: options.Dtype = "auto",
) -> None:
    """Talk to a model. /reset forgets the conversation, Ctrl-C interrupts, /exit leaves."""
    with options.plain_errors():
        from llamahome.engine import SamplingParams, TextEngine

        params = SamplingParams(
            max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed
        )
        engine = TextEngine.load(
            ModelConfig(name=model, dtype=dtype),
            policy_config(policy, budget, sink, recent, interval, max_length),
            options.one_slot(max_length),
        )
        opening = _opening(engine, system)
        typer.secho(f"{model}, policy {engine.policy.name}. /reset, /exit.", fg="bright_black")
        _converse(engine, params, opening)


def _opening(engine: TextEngine, system: str | None) -> list[dict[str, str]]:
    """Return the messages that come first, once the model's chat template has taken them."""
    from llamahome.engine import RequestError

    engine.encode_chat([user("Hello!")])
    if system is None:
        return []
    opening = [{"role": "system", "content": check_typed("--system", system)}]
    try:
        engine.encode_chat([*opening, user("Hello!")])
    except RequestError as error:
        raise ConfigError(f"--system={system!r}: {error.reason}; leave --system out") from error
    return opening


def _converse(engine: TextEngine, params: SamplingParams, opening: list[dict[str, str]]) -> None:
    messages = list(opening)
    while (line := _ask()) is not None:
        if line == "/reset":
            messages = list(opening)
        elif line:
            messages.append(user(line))
            answer = _answer(engine, params, messages)
            if answer is None:
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": answer})


def _ask() -> str | None:
    try:
        line = input("> ").strip()
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise ConfigError(f"the message is no UTF-8 text ({error}); {CURE}") from error
    return None if line == "/exit" else check_typed("message", line)


def _answer(
    engine: TextEngine, params: SamplingParams, messages: list[dict[str, str]]
) -> str | None:
    """Stream and return an answer; None if it was interrupted or refused, after saying so."""
    from llamahome.engine import EngineError

    try:
        answer, usage = stream_answer(engine, engine.encode_chat(messages), params)
    except KeyboardInterrupt:
        typer.secho("\n[interrupted; your message is forgotten]", fg="bright_black")
        return None
    except EngineError as error:
        typer.secho(f"error: {error}; /reset starts again", fg="red", err=True)
        return None
    typer.secho(f"[{describe(usage)}]", fg="bright_black")
    return answer
