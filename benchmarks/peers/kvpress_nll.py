"""Perplexity after a prompt that each of kvpress's presses has compressed.

It runs in kvpress's own environment and imports nothing of LlamaHome. It reads {"model",
"prompt_tokens", "windows", "entries"} as JSON, and writes a list of {"press", "entries", "nll"}.
"""

from __future__ import annotations

import json
import sys

import kvpress
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils.logging import disable_progress_bar

PRESSES = {
    "h2o": kvpress.ObservedAttentionPress,
    "snapkv": kvpress.SnapKVPress,
    "tova": kvpress.TOVAPress,
    "keydiff": kvpress.KeyDiffPress,
    "window": kvpress.StreamingLLMPress,
    "random": kvpress.RandomPress,
}


@torch.inference_mode()
def score(model: torch.nn.Module, ids: torch.Tensor, prompt: int, press: object) -> float:
    """Return the mean NLL of the tokens after the prompt, given the compressed cache."""
    cache = DynamicCache()
    with press(model):
        model.model(ids[None, :prompt], past_key_values=cache)
    held = cache.get_seq_length()
    rest = len(ids) - prompt
    logits = model(
        ids[None, prompt:],
        past_key_values=cache,
        # Keys stay rotated for their place in the text; the mask counts the entries held.
        position_ids=torch.arange(prompt, len(ids))[None],
        cache_position=torch.arange(held, held + rest),
    ).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1].float(), ids[prompt + 1 :]).item()


def main() -> None:
    disable_progress_bar()
    asked = json.load(sys.stdin)
    prompt = asked["prompt_tokens"]
    results = []
    # ObservedAttentionPress needs the probabilities, which only eager attention returns.
    for attention in ("sdpa", "eager"):
        model = AutoModelForCausalLM.from_pretrained(
            asked["model"], attn_implementation=attention, dtype=torch.float32
        )
        for name, press in PRESSES.items():
            if (name == "h2o") != (attention == "eager"):
                continue
            for entries in asked["entries"]:
                ratio = 1 - entries / prompt
                torch.manual_seed(0)
                nll = [
                    score(model, torch.tensor(ids), prompt, press(compression_ratio=ratio))
                    for ids in asked["windows"]
                ]
                results.append({"press": name, "entries": entries, "nll": sum(nll) / len(nll)})
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
