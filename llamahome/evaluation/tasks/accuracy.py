"""The share of questions that the engine answers right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llamahome.attention import Policy
from llamahome.config import EngineConfig
from llamahome.engine import SamplingParams, TextEngine
from llamahome.evaluation.intervals import Interval, wilson
from llamahome.evaluation.memory import KVBytes, answered_bytes
from llamahome.evaluation.reading import answers, sized
from llamahome.evaluation.tasks.question import Question

Group = TypeVar("Group", float, str)

MAX_TOKENS = 24
GREEDY = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Right answers.

    Attributes:
        right: right answers to `asked` questions.
        by_depth: right and asked at each depth.
        by_kind: right and asked of each kind of question.
        kv: bytes of the longest question with its answer.
    """

    right: int
    asked: int
    by_depth: dict[float, tuple[int, int]]
    by_kind: dict[str, tuple[int, int]]
    kv: KVBytes

    @property
    def accuracy(self) -> float:
        return self.right / self.asked

    @property
    def interval(self) -> Interval:
        return wilson(self.right, self.asked)


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    policy: Policy,
    engine: EngineConfig,
    *,
    on_answer: Callable[[], None] = lambda: None,
) -> Accuracy:
    """Ask every question once, greedily; an answer is right if it holds what is expected, whole.

    Args:
        engine: the engine that answers.
        on_answer: called after each answer, for a progress bar.
    """
    longest = max(len(question.prompt) for question in questions) + MAX_TOKENS
    answering = TextEngine(model, tokenizer, policy, sized(engine, longest))
    given = answers(answering, [(question.prompt, GREEDY) for question in questions], on_answer)
    marks = [
        question.is_answered_by(text) for question, (text, _) in zip(questions, given, strict=True)
    ]
    return Accuracy(
        right=sum(marks),
        asked=len(marks),
        by_depth=_counts([question.depth for question in questions], marks),
        by_kind=_counts([question.kind for question in questions], marks),
        kv=max((answered_bytes(usage) for _, usage in given), key=lambda kv: kv.dense),
    )


def _counts(groups: list[Group], marks: list[bool]) -> dict[Group, tuple[int, int]]:
    """Return right and asked of each group, in the order in which the groups appear."""
    counts: dict[Group, tuple[int, int]] = {}
    for group, right in zip(groups, marks, strict=True):
        before = counts.get(group, (0, 0))
        counts[group] = (before[0] + right, before[1] + 1)
    return counts
