"""Greedy answers through the slots, several prompts at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llamahome.cache import Slots, SlotStep


@torch.inference_mode()
def answer(
    model: PreTrainedModel,
    slots: Slots,
    prompts: Sequence[list[int]],
    *,
    max_tokens: int,
    eos: Collection[int],
) -> list[list[int]]:
    """The likeliest continuation of each prompt, up to `max_tokens` or an `eos`, which is left out.

    Args:
        slots: at least as many as prompts; prompt i takes slot i.
    """
    for row in range(len(prompts)):
        slots.reset(row)
    logits = _prefill(model, slots, prompts)
    answers: list[list[int]] = [[] for _ in prompts]
    running = list(range(len(prompts)))
    for _ in range(max_tokens):
        tokens = logits.argmax(dim=-1).tolist()
        spoken = [(row, t) for row, t in zip(running, tokens, strict=True) if t not in eos]
        for row, token in spoken:
            answers[row].append(token)
        running = [row for row, _ in spoken if len(answers[row]) < max_tokens]
        if not running:
            break
        logits = _forward(model, slots, running, [[answers[row][-1]] for row in running])
    return answers


def _prefill(model: PreTrainedModel, slots: Slots, prompts: Sequence[list[int]]) -> Tensor:
    """Logits (B, V) after each prompt."""
    after: dict[int, Tensor] = {}
    read = [0] * len(prompts)
    while rows := [row for row, at in enumerate(read) if at < len(prompts[row])]:
        pieces = [prompts[row][read[row] : read[row] + slots.room(row)] for row in rows]
        logits = _forward(model, slots, rows, pieces)
        for row, piece, last in zip(rows, pieces, logits, strict=True):
            read[row] += len(piece)
            after[row] = last
    return torch.stack([after[row] for row in range(len(prompts))])


def _forward(
    model: PreTrainedModel, slots: Slots, rows: list[int], tokens: list[list[int]]
) -> Tensor:
    """Logits (B, V) after the last token of each row."""
    counts = [len(piece) for piece in tokens]
    padded = [piece + [0] * (max(counts) - len(piece)) for piece in tokens]
    last = torch.tensor(counts, device=model.device) - 1
    wanted, of_row = last.unique(return_inverse=True)
    plan = slots.plan(rows, counts)
    step = SlotStep(slots, plan)
    logits: Tensor = model(
        input_ids=torch.tensor(padded, device=model.device),
        position_ids=step.position_ids,
        use_cache=False,
        logits_to_keep=wanted,
        hybrid=step,
    ).logits
    slots.commit(plan)
    return logits[torch.arange(len(rows), device=logits.device), of_row]
