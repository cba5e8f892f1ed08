"""transformers: float32, sdpa, DynamicCache, the loop of `generate` without its bookkeeping.

It runs in LlamaHome's own environment. One prompt is read, and its cache copied to every request.
"""

from __future__ import annotations

import copy
import time

import torch
from protocol import Reply, serve, timed_steps
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils.logging import disable_progress_bar


class Transformers:
    def __init__(self, model: str, threads: int) -> None:
        disable_progress_bar()
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.model = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self._read: tuple[list[int], DynamicCache, torch.Tensor] | None = None

    def prefill(self, prompt: list[int]) -> Reply:
        self._read = None
        cache = DynamicCache(config=self.model.config)
        started = time.perf_counter()
        token = self._forward(torch.tensor([prompt]), cache)
        seconds = time.perf_counter() - started
        self._read = (prompt, cache, token)
        return {"seconds": seconds}

    def fill(self, prompts: list[list[int]]) -> Reply:
        if self._read is None or self._read[0] != prompts[0]:
            self.prefill(prompts[0])
        _, cache, token = self._read
        self._cache = copy.deepcopy(cache)
        self._cache.batch_repeat_interleave(len(prompts))
        self._tokens = token.repeat(len(prompts), 1)
        layers = self._cache.layers
        return {"kv_bytes": sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)}

    def decode(self, max_steps: int, seconds: float) -> Reply:
        return {"steps": timed_steps(self._step, max_steps, seconds)}

    def drop(self) -> Reply:
        del self._cache
        return {}

    def _step(self) -> None:
        self._tokens = self._forward(self._tokens, self._cache)

    def _forward(self, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """Return the greedy next token (B, 1) after ids (B, T)."""
        logits = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1].argmax(-1, keepdim=True)


if __name__ == "__main__":
    serve(Transformers)
