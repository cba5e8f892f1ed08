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
from llamahome.evaluation.calibration.recording import read, record
from llamahome.evaluation.calibration.scorer import example, fit
from llamahome.evaluation.text import encode, load_text

Tick = Callable[[], None]


def windows(
    tokenizer: PreTrainedTokenizerFast, text: str, *, length: int, count: int
) -> list[Tensor]:
    """Return `count` windows (length,) of token ids, spread evenly over a text.

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
    return [torch.tensor(ids[start : start + length]) for start in starts]


def measure(
    model: PreTrainedModel,
    policy: Policy,
    texts: Sequence[Tensor],
    rungs: Sequence[int],
    tick: Tick = lambda: None,
) -> Tensor:
    """Return the mean error of each KV head at each budget, in nats per token: (L, G, K).

    Args:
        texts: token ids, (N,) each.
        tick: called after each text, for a progress bar.
    """
    errors = []
    for number, ids in enumerate(texts):
        layers = record(model, ids, seed=number)
        errors.append(torch.stack([head_errors(layers, policy, rung) for rung in rungs], dim=-1))
        tick()
    return torch.stack(errors).mean(dim=0).cpu()


def train(
    model: PreTrainedModel,
    policy: Policy,
    texts: Sequence[Tensor],
    lookup: Tensor,
    tick: Tick = lambda: None,
    on_epoch: Callable[[float], None] = lambda loss: None,
) -> None:
    """Train the score of `policy` for a model, in place.

    Args:
        texts: token ids, (N,) each.
        lookup: bool (L, G), heads that look things up.
        tick: called after each text, for a progress bar.
        on_epoch: called after each pass over what was read, with its mean deviance.
    """
    scorer = policy.weights
    assert isinstance(scorer, LearnedScorer)
    examples = []
    for ids in texts:
        examples.append(example(read(model, ids), scorer, policy.config, lookup))
        tick()
    fit(scorer, examples, on_epoch=on_epoch)
