"""Perplexity of a text, and how far a policy is from dense attention, token by token.

The text is teacher-forced through the runners that serve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from llamahome.attention import Policy, build_policy
from llamahome.config import EngineConfig, PolicyConfig
from llamahome.engine.runners.contract import Runner
from llamahome.evaluation.memory import KVBytes, read_bytes
from llamahome.evaluation.reading import BLOCK, log_probs, open_runner


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Figures of a text under one policy.

    Attributes:
        nll: per window, mean negative log likelihood of its tokens in nats.
        kl: per window, mean KL(dense || policy) of the next-token distributions in nats.
        tokens: predicted tokens in all windows.
        kv: bytes of one window.
    """

    nll: list[float]
    kl: list[float]
    tokens: int
    kv: KVBytes

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log likelihood per token."""
        return math.exp(sum(self.nll) / len(self.nll))


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
            nll=[measured[i][0] for measured in windows],
            kl=[measured[i][1] for measured in windows],
            tokens=count * (window - 1),
            kv=read_bytes(runner.slots),
        )
        for i, runner in enumerate(runners[1:])
    ]


def _measure(ids: Sequence[int], runners: list[Runner]) -> list[tuple[float, float]]:
    """Return mean NLL and KL of one window for each of `runners[1:]`; `runners[0]` is dense."""
    dense, *others = runners
    for runner in runners:
        runner.slots.reset(0)
    sums = torch.zeros(len(others), 2, dtype=torch.float64)
    # All runners read a block before the next, so that no more logits are held than two blocks'.
    for start in range(0, len(ids) - 1, BLOCK):
        block = ids[start : min(start + BLOCK, len(ids) - 1)]
        reference = log_probs(dense, block)
        targets = torch.tensor(ids[start + 1 : start + len(block) + 1], device=reference.device)
        for total, runner in zip(sums, others, strict=True):
            own = log_probs(runner, block)
            total[0] += F.nll_loss(own, targets, reduction="sum").double().cpu()
            total[1] += F.kl_div(own, reference, reduction="sum", log_target=True).double().cpu()
    return [(float(nll), float(kl)) for nll, kl in sums / (len(ids) - 1)]
