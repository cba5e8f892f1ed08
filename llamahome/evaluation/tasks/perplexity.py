"""Perplexity of a text, and how far a policy is from dense attention, token by token.

The text is teacher-forced through the runners that serve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from llamahome.attention import Policy, build_policy
from llamahome.config import EngineConfig, PolicyConfig
from llamahome.engine.runners.contract import Runner
from llamahome.evaluation.memory import KVBytes, read_bytes
from llamahome.evaluation.reading import BLOCK, log_probs, open_runner

PAIRED = 64  # tokens whose sum is compared between policies


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Figures of a text under one policy.

    Attributes:
        blocks: per window, sums of the negative log likelihood in nats over each 64 tokens.
        kl: per window, mean KL(dense || policy) of the next-token distributions in nats.
        tokens: predicted tokens in all windows.
        kv: bytes of one window.
    """

    blocks: list[list[float]]
    kl: list[float]
    tokens: int
    kv: KVBytes

    @property
    def nll(self) -> list[float]:
        """Mean negative log likelihood per token of each window, in nats."""
        return [sum(window) * len(self.blocks) / self.tokens for window in self.blocks]

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log likelihood per token."""
        return math.exp(sum(map(sum, self.blocks)) / self.tokens)


def perplexity(
    model: PreTrainedModel,
    ids: Sequence[int],
    policies: Sequence[Policy],
    engine: EngineConfig,
    *,
    window: int,
    on_window: Callable[[], None] = lambda: None,
) -> list[Perplexity]:
    """Return perplexity and KL to dense of several policies, over consecutive windows of a text.

    Dense attention runs once for all of them, so measuring policies together is cheaper. Each has
    a runner of its own, so the C++ kernels' weights are copied for each.

    Args:
        ids: token ids, at least one window.
        policies: one result each; `full` among them is dense attention itself.
        engine: the engine whose runner is measured.
        window: tokens per window; each starts from an empty cache.
        on_window: called after each window, for a progress bar.

    Raises:
        ValueError: for a text shorter than a window.
    """
    count = len(ids) // window
    if count == 0 or window < 2:
        raise ValueError(f"the text has {len(ids)} tokens; a window of {window} does not fit")
    runners = [
        open_runner(model, policy, engine, max_length=window)
        for policy in (build_policy(PolicyConfig.dense()), *policies)
    ]
    windows = []
    for start in range(0, count * window, window):
        windows.append(_measure(ids[start : start + window], runners))
        on_window()
    return [
        Perplexity(
            blocks=[measured[i][0] for measured in windows],
            kl=[measured[i][1] for measured in windows],
            tokens=count * (window - 1),
            kv=read_bytes(runner.slots),
        )
        for i, runner in enumerate(runners[1:])
    ]


def _measure(ids: Sequence[int], runners: list[Runner]) -> list[tuple[list[float], float]]:
    """Return the NLL of each block and the mean KL of one window, for each of `runners[1:]`.

    `runners[0]` is dense.
    """
    dense, *others = runners
    for runner in runners:
        runner.slots.reset(0)
    nll: list[list[Tensor]] = [[] for _ in others]
    kl = [0.0] * len(others)
    # All runners read a block before the next, so that no more logits are held than two blocks'.
    for start in range(0, len(ids) - 1, BLOCK):
        block = ids[start : min(start + BLOCK, len(ids) - 1)]
        reference = log_probs(dense, block)
        targets = torch.tensor(ids[start + 1 : start + len(block) + 1], device=reference.device)
        for i, runner in enumerate(others):
            own = log_probs(runner, block)
            nll[i].append(F.nll_loss(own, targets, reduction="none").double().cpu())
            kl[i] += float(F.kl_div(own, reference, reduction="sum", log_target=True))
    return [
        ([float(part.sum()) for part in torch.cat(parts).split(PAIRED)], total / (len(ids) - 1))
        for parts, total in zip(nll, kl, strict=True)
    ]
