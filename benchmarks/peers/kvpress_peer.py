"""kvpress: a prompt compressed once after its prefill, then transformers' own decoding.

It runs in an environment of its own. Its SnapKV press needs the probabilities of the last queries
only, so it fits into memory. The cache grows again while decoding.
"""

from __future__ import annotations

import copy
import time

import torch
from kvpress import SnapKVPress
from protocol import Reply, serve, timed_steps
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils.logging import disable_progress_bar


class KVPress:
    def __init__(self, model: str, threads: int, share: float) -> None:
        disable_progress_bar()
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.model = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self.press = SnapKVPress(compression_ratio=1 - share)
        self._read: tuple[list[int], DynamicCache, torch.Tensor] | None = None

    def prefill(self, prompt: list[int]) -> Reply:
        self._read = None
        cache = DynamicCache()
        started = time.perf_counter()
        with self.press(self.model):
            token = self._next(
                self.model(torch.tensor([prompt]), past_key_values=cache, logits_to_keep=1)
            )
        seconds = time.perf_counter() - started
        self._read = (prompt, cache, token)
        return {"seconds": seconds}

    def fill(self, prompts: list[list[int]]) -> Reply:
        if self._read is None or self._read[0] != prompts[0]:
            self.prefill(prompts[0])
        prompt, cache, token = self._read
        self._cache = copy.deepcopy(cache)
        self._cache.batch_repeat_interleave(len(prompts))
        self._tokens = token.repeat(len(prompts), 1)
        self._length = len(prompt)
        layers = self._cache.layers
        return {"kv_bytes": sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)}

    def decode(self, max_steps: int, seconds: float) -> Reply:
        return {"steps": timed_steps(self._step, max_steps, seconds)}

    def drop(self) -> Reply:
        del self._cache
        return {}

    def _step(self) -> None:
        held = self._cache.get_seq_length()
        # Keys stay rotated for their place in the text; the mask counts the entries held.
        output = self.model(
            self._tokens,
            past_key_values=self._cache,
            position_ids=torch.full_like(self._tokens, self._length),
            cache_position=torch.tensor([held]),
        )
        self._tokens = self._next(output)
        self._length += 1

    @staticmethod
    def _next(output: object) -> torch.Tensor:
        return output.logits[:, -1].argmax(-1, keepdim=True)


if __name__ == "__main__":
    serve(KVPress)
