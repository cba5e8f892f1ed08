"""How many questions a model answers right, reading and answering through the slots."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llamahome.attention import HybridAttention, build_policy
from llamahome.cache import Slots
from llamahome.config import PolicyConfig
from llamahome.evaluation.memory import KVBytes, kv_bytes
from llamahome.evaluation.tasks.greedy import answer
from llamahome.evaluation.tasks.retrieval import Question

MAX_TOKENS = 24


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Right answers.

    Attributes:
        right: of `asked` questions.
        by_depth: share of right answers at each depth.
        kv: of the longest question.
    """

    right: int
    asked: int
    by_depth: dict[float, float]
    kv: KVBytes

    @property
    def accuracy(self) -> float:
        return self.right / self.asked


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    policy: PolicyConfig,
    *,
    batch_size: int,
    on_answer: Callable[[int], None] = lambda count: None,
) -> Accuracy:
    """Ask every question once, greedily; right is what holds the number, whole.

    Args:
        batch_size: questions read at once.
        on_answer: called with how many were answered, for a progress bar.
    """
    HybridAttention.attach(model)
    longest = max(len(question.prompt) for question in questions) + MAX_TOKENS
    slots = Slots.for_model(model, build_policy(policy), num_slots=batch_size, max_length=longest)
    marks: list[tuple[float, bool]] = []
    kv = kv_bytes(slots)
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        said = answer(
            model,
            slots,
            [question.prompt for question in batch],
            max_tokens=MAX_TOKENS,
            eos=_eos(model, tokenizer),
        )
        for row, (question, tokens) in enumerate(zip(batch, said, strict=True)):
            marks.append(
                (question.depth, _says(cast(str, tokenizer.decode(tokens)), question.expected))
            )
            kv = max(kv, kv_bytes(slots, row), key=lambda bytes_: bytes_.dense)
        on_answer(len(batch))
    return Accuracy(
        right=sum(right for _, right in marks), asked=len(marks), by_depth=_by_depth(marks), kv=kv
    )


def _says(text: str, number: str) -> bool:
    return number in re.findall(r"\d+", text)


def _by_depth(marks: list[tuple[float, bool]]) -> dict[float, float]:
    depths = sorted({depth for depth, _ in marks})
    of_depth = {d: [right for depth, right in marks if depth == d] for d in depths}
    return {depth: sum(own) / len(own) for depth, own in of_depth.items()}


def _eos(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Collection[int]:
    eos = model.generation_config.eos_token_id
    ids = [eos] if isinstance(eos, int) else list(eos or [])
    return {*ids, *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])}
