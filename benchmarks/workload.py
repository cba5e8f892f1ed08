"""Prompts and policies that several benchmarks share."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from llamahome.config import PolicyConfig
from llamahome.evaluation.text import load_text
from llamahome.models import EMBEDDED_MODEL, ModelManager

DENSE = PolicyConfig.dense()


def evicting(budget: int) -> PolicyConfig:
    """Return H2O as it serves: half the entries for the recent ones, compacted every 64 tokens."""
    return PolicyConfig(budget=budget, recent=budget // 2, interval=min(64, budget // 2))


def novel_ids() -> list[int]:
    """Return the novel that ships, as tokens of the embedded model."""
    tokenizer = Tokenizer.from_file(str(ModelManager().resolve(EMBEDDED_MODEL) / "tokenizer.json"))
    return list(tokenizer.encode(load_text("persuasion")).ids)


def cut(ids: Sequence[int], length: int, number: int) -> list[int]:
    """Return `length` tokens of a text; each number begins elsewhere, so no two share a prefix."""
    start = number * 997 % (len(ids) - length)
    return list(ids[start : start + length])
