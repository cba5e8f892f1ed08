"""Four kinds of prompts, made of texts that ship."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from benchmarks.workload import DENSE, cut, evicting
from llamahome.config import PolicyConfig
from llamahome.evaluation.text import load_text

QUESTIONS = Path(__file__).parents[2] / "datasets" / "wordnet_eval.jsonl"
SHARE, LEAST = 0.2, 128  # budget as a share of the context; at least two chunks
Prompts = dict[str, list[list[int]]]


def make_prompts(tokenizer: PreTrainedTokenizerFast, number: int, passage: int) -> Prompts:
    """Make `number` prompts of each kind; passages of the novel have `passage` tokens."""
    novel = load_text("persuasion")
    ids: list[int] = tokenizer.encode(novel, add_special_tokens=False, verbose=False)
    passages = [cut(ids, passage, 7 * i + 1) for i in range(number)]
    blocks = [" ".join(block.split()) for block in novel.split("\n\n")]
    paragraphs = [block for block in blocks if 100 <= len(block.split()) <= 130][:number]
    chats = [json.loads(line)["messages"] for line in QUESTIONS.read_text().splitlines()]
    first = [messages[0]["content"] for messages in chats]
    questions = [text for text in first if text.startswith("What does")][:number]

    def chat(text: str) -> list[int]:
        said = [{"role": "user", "content": text}]
        whole = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        return list(tokenizer.encode(str(whole), add_special_tokens=False))

    listing = "List the names of all people in this text, and say what each of them does:\n\n"
    return {
        "chat": [chat(f"{text} Explain it in a few paragraphs.") for text in questions],
        "novel": passages,
        "copy": [chat(f"Repeat this paragraph exactly:\n\n{text}") for text in paragraphs],
        "names": [chat(listing + str(tokenizer.decode(part))) for part in passages],
    }


def policy_of(name: str, context: int) -> PolicyConfig:
    return DENSE if name == "dense" else evicting(max(LEAST, int(SHARE * context)))
