"""vLLM's CPU build, its engine stepped in this process, in an environment of its own.

Every request has its own prompt, so that no two share blocks of the cache. The prompts are read
first and found again by prefix caching, so that all requests begin to decode together. It runs
eagerly: in a trial, compiling took 100 s and gained nothing in decode and 3 % in prefill.
"""

from __future__ import annotations

import itertools
import time

from protocol import Reply, serve, timed_steps
from vllm import LLM, SamplingParams

# More tokens than any cell decodes, so that no request ends before.
LONG = SamplingParams(temperature=0, max_tokens=1024, ignore_eos=True)
ONE = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
SEQUENCES = 32


class VLLM:
    def __init__(self, model: str, dtype: str) -> None:
        self.llm = LLM(
            model,
            dtype=dtype,
            enforce_eager=True,
            max_model_len=16384,
            # Cells at the end of the trained context decode a little beyond it.
            hf_overrides={"max_position_embeddings": 16384},
            max_num_seqs=SEQUENCES,
            enable_prefix_caching=True,
            disable_log_stats=True,
        )
        self._names = map(str, itertools.count())
        self._running: list[str] = []

    def prefill(self, prompt: list[int]) -> Reply:
        self.llm.reset_prefix_cache()
        started = time.perf_counter()
        self._read([prompt])
        return {"seconds": time.perf_counter() - started}

    def fill(self, prompts: list[list[int]]) -> Reply:
        self._read(prompts)
        engine = self.llm.llm_engine
        self._running = [next(self._names) for _ in prompts]
        for name, ids in zip(self._running, prompts, strict=True):
            engine.add_request(name, {"prompt_token_ids": ids}, LONG)
        # Some prefills may end a step later than others; from here on all requests decode.
        begun: set[str] = set()
        while len(begun) < len(prompts):
            begun |= {output.request_id.split("-")[0] for output in engine.step()}
        config = self.llm.llm_engine.vllm_config.model_config
        width = config.hf_config.num_key_value_heads * config.get_head_size()
        token = 2 * config.hf_config.num_hidden_layers * width * config.dtype.itemsize
        return {"kv_bytes": token * sum(len(ids) for ids in prompts)}

    def decode(self, max_steps: int, seconds: float) -> Reply:
        return {"steps": timed_steps(self._step, max_steps, seconds)}

    def drop(self) -> Reply:
        engine = self.llm.llm_engine
        engine.abort_request(self._running)
        while engine.has_unfinished_requests():
            engine.step()
        self._running = []
        return {}

    def _read(self, prompts: list[list[int]]) -> None:
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        self.llm.generate(asked, ONE, use_tqdm=False)

    def _step(self) -> None:
        outputs = self.llm.llm_engine.step()
        if len(outputs) != len(self._running):
            raise RuntimeError(f"a step gave {len(outputs)} of {len(self._running)} a token")


if __name__ == "__main__":
    serve(VLLM)
