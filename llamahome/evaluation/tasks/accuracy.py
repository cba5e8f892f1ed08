"""The share of questions that the engine answers right."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llamahome.attention import Policy
from llamahome.config import EngineConfig
from llamahome.engine import SamplingParams, TextEngine
from llamahome.evaluation.memory import KVBytes, answered_bytes
from llamahome.evaluation.reading import answers, sized
from llamahome.evaluation.tasks.retrieval import Question

MAX_TOKENS = 24
GREEDY = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Right answers.

    Attributes:
        right: right answers to `asked` questions.
        by_depth: share of right answers at each depth.
        kv: bytes of the longest question with its answer.
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
    policy: Policy,
    engine: EngineConfig,
    *,
    on_answer: Callable[[], None] = lambda: None,
) -> Accuracy:
    """Ask every question once, greedily; an answer is right if it holds the number, whole.

    Args:
        engine: the engine that answers.
        on_answer: called after each answer, for a progress bar.
    """
    longest = max(len(question.prompt) for question in questions) + MAX_TOKENS
    answering = TextEngine(model, tokenizer, policy, sized(engine, longest))
    given = answers(answering, [(question.prompt, GREEDY) for question in questions], on_answer)
    marks = [
        (question.depth, question.expected in re.findall(r"\d+", text))
        for question, (text, _) in zip(questions, given, strict=True)
    ]
    of_depth = defaultdict(list)
    for depth, right in sorted(marks):
        of_depth[depth].append(right)
    return Accuracy(
        right=sum(right for _, right in marks),
        asked=len(marks),
        by_depth={depth: sum(own) / len(own) for depth, own in of_depth.items()},
        kv=max((answered_bytes(usage) for _, usage in given), key=lambda kv: kv.dense),
    )
