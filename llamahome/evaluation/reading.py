"""Texts read through the engine's runner, and prompts answered by the engine. V: vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llamahome.attention import Policy
from llamahome.config import EngineConfig
from llamahome.engine import EngineError, SamplingParams, TextEngine, Usage
from llamahome.engine.runners.build import build_runner
from llamahome.engine.runners.contract import Every, RowInput, Runner, StepOutput

BLOCK = 256  # tokens whose log-probabilities are held at once


def sized(engine: EngineConfig, max_length: int) -> EngineConfig:
    """Return `engine` for texts of up to `max_length` tokens and any number of requests."""
    queued = 1_000_000
    return replace(
        engine, max_length=max_length, max_queued=queued, max_queued_tokens=queued * max_length
    )


def open_runner(
    model: PreTrainedModel, policy: Policy, engine: EngineConfig, *, max_length: int
) -> Runner:
    """Return a runner with one slot, as the engine would use it for `policy`."""
    one_slot = replace(sized(engine, max_length), slots=1)
    return build_runner(model, policy, one_slot)


def read(runner: Runner, ids: Sequence[int]) -> None:
    """Read `ids` on into slot 0."""
    for _ in _steps(runner, ids, None):
        pass


@torch.inference_mode()
def log_probs(runner: Runner, ids: Sequence[int]) -> Tensor:
    """Read `ids` on into slot 0 and return the log-probabilities after each: float32 (N, V)."""
    parts = [step.every[0] for step in _steps(runner, ids, "logits")]
    return torch.cat(parts).log_softmax(dim=-1)


def _steps(runner: Runner, ids: Sequence[int], every: Every) -> Iterator[StepOutput]:
    at = 0
    while at < len(ids):
        piece = ids[at : at + runner.slots.room(0)]
        yield runner.forward([RowInput(slot=0, tokens=piece, every=every)])
        at += len(piece)


def kept_positions(
    model: PreTrainedModel,
    ids: Sequence[int],
    policy: Policy,
    engine: EngineConfig,
    *,
    layer_idx: int,
    head: int,
) -> list[list[int]]:
    """Return the positions of the text `ids` that a KV head holds after each chunk."""
    runner = open_runner(model, policy, engine, max_length=len(ids))
    plane = next(p for p in runner.slots.layers[layer_idx].planes if head in p.heads)
    index = plane.heads.index(head)
    kept = []
    for start in range(0, len(ids), policy.interval):
        read(runner, ids[start : start + policy.interval])
        count = plane.shape.policy.held(runner.slots.lengths[0])
        kept.append(plane.kv.positions[0, index, :count].tolist())
    return kept


def continuation_score(
    runner: Runner, context: Sequence[int], continuation: Sequence[int]
) -> tuple[float, bool]:
    """Return the log-probability of `continuation` after `context`, in nats, and if it is greedy.

    Both are read into slot 0, which is emptied first; neither is empty.
    """
    runner.slots.reset(0)
    read(runner, context[:-1])
    ids = [context[-1], *continuation[:-1]]
    total, greedy = 0.0, True
    for start in range(0, len(ids), BLOCK):
        found = log_probs(runner, ids[start : start + BLOCK])
        wanted = torch.tensor(continuation[start : start + BLOCK], device=found.device)
        total += float(found.gather(1, wanted[:, None]).sum(dtype=torch.float64))
        greedy = greedy and bool((found.argmax(dim=-1) == wanted).all())
    return total, greedy


def answers(
    engine: TextEngine,
    prompts: Sequence[tuple[list[int], SamplingParams]],
    on_answer: Callable[[], None] = lambda: None,
) -> list[tuple[str, Usage]]:
    """Answer all prompts, as many at once as the engine has slots.

    Args:
        prompts: token ids of each, with how it is to be answered.
        on_answer: called after each answer, for a progress bar.

    Raises:
        EngineError: for a prompt that is refused, or an answer that fails.
    """
    for number, (prompt, params) in enumerate(prompts):
        engine.submit(str(number), prompt, params)
    texts = [""] * len(prompts)
    usages: dict[int, Usage] = {}
    while engine.has_work:
        for delta in engine.step():
            if delta.error is not None:
                raise EngineError(delta.error)
            texts[int(delta.request_id)] += delta.text
            if delta.usage is not None:
                usages[int(delta.request_id)] = delta.usage
                on_answer()
    return [(text, usages[number]) for number, text in enumerate(texts)]
