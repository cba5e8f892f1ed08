"""Texts to calibrate on, and passes over them. Axes: L layers, G KV heads, K rungs, N tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llamahome.attention import Policy
from llamahome.attention.policies.learned import LearnedScorer
from llamahome.config import ConfigError
from llamahome.evaluation.calibration.budgets import head_errors
from llamahome.evaluation.calibration.recording import Reading, read, record
from llamahome.evaluation.calibration.scorer import example, fit
from llamahome.evaluation.text import encode, load_text

Tick = Callable[[], None]
# Nats per token of text that are worth as much as half a square of log-odds of an answer's token.
# On SmolLM2-135M at 10 %, 5 times less or more changes perplexity by 0.1 %.
ANSWER_WEIGHT = 0.02


def windows(
    tokenizer: PreTrainedTokenizerFast, text: str, *, length: int, count: int
) -> list[Reading]:
    """Return `count` windows of `length` tokens, spread evenly over a text.

    Args:
        text: a name that ships, or a file.

    Raises:
        ConfigError: for a text that is too short.
    """
    ids = encode(tokenizer, load_text(text, field="--text"))
    if len(ids) < count * length:
        raise ConfigError(
            f"--text={text}: it has {len(ids)} tokens; --windows={count} of --context={length} "
            f"need {count * length}"
        )
    gap = (len(ids) - length) // max(1, count - 1)
    starts = [min(i * gap, len(ids) - length) for i in range(count)]
    return [Reading(ids=torch.tensor(ids[start : start + length])) for start in starts]


def measure(
    model: PreTrainedModel,
    policy: Policy,
    readings: Sequence[Reading],
    rungs: Sequence[int],
    tick: Tick = lambda: None,
) -> Tensor:
    """Return the error of each KV head at each budget, in nats per token: (L, G, K).

    That is the mean over texts, plus `ANSWER_WEIGHT` times the mean over probes, per token of an
    answer.

    Args:
        readings: texts and probes.
        tick: called after each reading, for a progress bar.
    """
    texts, answers = [], []
    for number, reading in enumerate(readings):
        layers = record(model, reading, seed=number)
        own = [head_errors(layers, policy, rung) for rung in rungs]
        errors = torch.stack(own, dim=-1).cpu()
        if reading.answering is None:
            texts.append(errors)
        else:
            count = reading.answering.stop - reading.answering.start
            answers.append(ANSWER_WEIGHT * errors * len(reading.ids) / count)
        tick()
    means = [torch.stack(kind).mean(dim=0) for kind in (texts, answers) if kind]
    return sum(means, torch.zeros(()))


def train(
    model: PreTrainedModel,
    policy: Policy,
    readings: Sequence[Reading],
    tick: Tick = lambda: None,
    on_epoch: Callable[[float], None] = lambda loss: None,
) -> None:
    """Train the score of `policy` for a model, in place.

    Args:
        tick: called after each reading, for a progress bar.
        on_epoch: called after each pass over what was read, with its mean deviance.
    """
    scorer = policy.weights
    assert isinstance(scorer, LearnedScorer)
    examples = []
    for reading in readings:
        examples.append(example(read(model, reading), scorer, policy.config))
        tick()
    fit(scorer, examples, on_epoch=on_epoch)
