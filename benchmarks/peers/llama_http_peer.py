"""llama.cpp's own server (xllamacpp) on a port: GGUF PORT THREADS SLOTS LENGTH."""

from __future__ import annotations

import sys
import threading

import xllamacpp as lib


def main(gguf: str, port: int, threads: int, slots: int, length: int) -> None:
    params = lib.CommonParams()
    params.model.path = gguf
    params.port = port
    params.n_parallel = slots
    params.n_ctx = slots * (-(-length // 256) * 256)
    params.kv_unified = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = -1
    server = lib.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
