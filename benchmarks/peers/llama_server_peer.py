"""llama.cpp's own server (xllamacpp), in this process: continuous batching over its slots.

Requests come from one thread each, streamed, as its HTTP handlers would send them.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import xllamacpp as lib
from protocol import Reply, serve


class LlamaServer:
    """llama.cpp's server under measurement.

    Args:
        slots: requests at once.
        length: tokens of a slot, prompt and answer.
    """

    def __init__(self, gguf: str, threads: int, slots: int, length: int) -> None:
        params = lib.CommonParams()
        params.model.path = gguf
        params.n_parallel = slots
        params.n_ctx = slots * (-(-length // 256) * 256)
        params.kv_unified = False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.verbosity = -1
        self._server = lib.Server(params)

    def replay(self, prompts: list[list[int]], times: list[float], answers: list[int]) -> Reply:
        """Send prompt i at `times[i]`; return {"tokens"}: the time of each token, by request."""
        arrived: list[list[float]] = [[] for _ in prompts]
        failures: list[str] = []
        started = time.perf_counter()

        def ask(i: int) -> None:
            time.sleep(max(0.0, times[i] - (time.perf_counter() - started)))

            def take(chunk: Any) -> None:
                if "error" in chunk:
                    failures.append(str(chunk))
                elif chunk["choices"][0]["finish_reason"] is None:
                    arrived[i].append(time.perf_counter() - started)

            wanted = {"prompt": prompts[i], "n_predict": answers[i], "stream": True}
            fixed = {"ignore_eos": True, "temperature": 0, "cache_prompt": False}
            self._server.handle_completions({**wanted, **fixed}, take)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise RuntimeError(failures[0])
        return {"tokens": arrived}


if __name__ == "__main__":
    serve(LlamaServer)  # type: ignore[arg-type]
