"""llama.cpp through llama-cpp-python's low-level batches, in an environment of its own.

Every request is a sequence with its own float16 cache. (`kv_unified` is off: in a cache for all,
each token would also walk the cells of the others.) One prompt is read, and its cells are copied to
every sequence. Flash attention is on or off, whichever is faster when the model is loaded.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

import llama_cpp as lib
import numpy as np
from protocol import Reply, serve, timed_steps

BATCH = 2048  # tokens of one llama_decode
ROOM = 256  # cells beyond the prompt
FLASH = (lib.LLAMA_FLASH_ATTN_TYPE_ENABLED, lib.LLAMA_FLASH_ATTN_TYPE_DISABLED)
KV_BYTES = 2  # float16


class LlamaCpp:
    """llama.cpp under measurement.

    Args:
        gguf: the weights as they ship.
        q8_0: file for the weights as Q8_0, which then run; None runs `gguf`.
        probe: a prompt on which flash attention is tried.
    """

    def __init__(self, gguf: str, q8_0: str | None, threads: int, probe: list[int]) -> None:
        self._silence = lib.llama_log_callback(lambda level, text, data: None)
        lib.llama_log_set(self._silence, ctypes.c_void_p(0))
        lib.llama_backend_init()
        file = gguf if q8_0 is None else requantised(gguf, q8_0)
        self.model = lib.llama_model_load_from_file(file.encode(), lib.llama_model_default_params())
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.threads = threads
        self._batch = lib.llama_batch_init(BATCH, 0, 1)
        self._ctx = None
        self._unused: list[int] | None = None  # the last prefill, whose cache may be used
        self.flash = min(FLASH, key=lambda flash: self._try(flash, probe))

    def prefill(self, prompt: list[int]) -> Reply:
        self._open(1, len(prompt))
        started = time.perf_counter()
        token = self._prefill(prompt)
        seconds = time.perf_counter() - started
        self._tokens, self._unused = [token], prompt
        return {"seconds": seconds}

    def fill(self, prompts: list[list[int]]) -> Reply:
        prompt, count = prompts[0], len(prompts)
        if count > 1 or self._unused != prompt:
            self._open(count, len(prompt))
            self._tokens = [self._prefill(prompt)] * count
            memory = lib.llama_get_memory(self._ctx)
            for sequence in range(1, count):
                lib.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
        self._unused = None
        self._length = len(prompt)
        width = lib.llama_model_n_embd(self.model) // lib.llama_model_n_head(self.model)
        width *= lib.llama_model_n_head_kv(self.model)
        token = 2 * KV_BYTES * width * lib.llama_model_n_layer(self.model)
        return {"kv_bytes": token * lib.llama_n_ctx(self._ctx)}

    def decode(self, max_steps: int, seconds: float) -> Reply:
        return {"steps": timed_steps(self._step, max_steps, seconds)}

    def drop(self) -> Reply:
        if self._ctx is not None:
            lib.llama_free(self._ctx)
            self._ctx = self._unused = None
        return {}

    def _open(self, sequences: int, length: int) -> None:
        """Open a new context, no larger than needed."""
        self.drop()
        params = lib.llama_context_default_params()
        params.n_ctx = sequences * (-(-(length + ROOM) // 256) * 256)
        params.n_batch, params.n_ubatch = BATCH, 512
        params.n_seq_max = sequences
        params.kv_unified = False
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = self.flash
        self._ctx = lib.llama_init_from_model(self.model, params)
        if not self._ctx:
            raise MemoryError(f"llama.cpp has no context of {params.n_ctx} cells for us")

    def _try(self, flash: int, probe: list[int]) -> float:
        """Return seconds per step of decoding four requests."""
        self.flash = flash
        self.fill([probe] * 4)
        steps = timed_steps(self._step, 8, 60.0)
        self.drop()
        return min(steps)

    def _prefill(self, prompt: list[int]) -> int:
        for start in range(0, len(prompt), BATCH):
            part = prompt[start : start + BATCH]
            last = start + len(part) == len(prompt)
            for i, token in enumerate(part):
                self._put(i, token, start + i, 0, last and i == len(part) - 1)
            self._decode(len(part))
        return self._greedy(len(part) - 1)

    def _step(self) -> None:
        for sequence, token in enumerate(self._tokens):
            self._put(sequence, token, self._length, sequence, True)
        self._decode(len(self._tokens))
        self._length += 1
        self._tokens = [self._greedy(i) for i in range(len(self._tokens))]

    def _put(self, i: int, token: int, position: int, sequence: int, logits: bool) -> None:
        self._batch.token[i] = token
        self._batch.pos[i] = position
        self._batch.n_seq_id[i] = 1
        self._batch.seq_id[i][0] = sequence
        self._batch.logits[i] = logits

    def _decode(self, count: int) -> None:
        self._batch.n_tokens = count
        code = lib.llama_decode(self._ctx, self._batch)
        if code:
            raise RuntimeError(f"llama_decode of {count} tokens gave {code}")

    def _greedy(self, i: int) -> int:
        logits = lib.llama_get_logits_ith(self._ctx, i)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocab,)).argmax())


def requantised(gguf: str, q8_0: str) -> str:
    """Return the file of the weights as Q8_0; make it the first time."""
    if not Path(q8_0).is_file():
        params = lib.llama_model_quantize_default_params()
        params.ftype = lib.LLAMA_FTYPE_MOSTLY_Q8_0
        params.allow_requantize = True
        partial = f"{q8_0}.partial"
        code = lib.llama_model_quantize(gguf.encode(), partial.encode(), params)
        if code:
            raise RuntimeError(f"llama_model_quantize gave {code}")
        Path(partial).rename(q8_0)
    return q8_0


if __name__ == "__main__":
    serve(LlamaCpp)
