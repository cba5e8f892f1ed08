"""llama.cpp itself, built by others (xllamacpp), reading a GGUF file."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import xllamacpp
from torch import Tensor

LENGTH = 256


class LlamaCpp:
    """A server of llama.cpp in this process."""

    def __init__(self, file: Path) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.port, params.n_parallel = LENGTH, 0, 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.warmup = False
        params.verbosity = -1
        self._server = xllamacpp.Server(params)

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a text with the tokens that the file puts around it."""
        body = {"content": text, "parse_special": True, "add_special": True}
        ids: list[int] = self._post("/tokenize", body)["tokens"]
        return ids

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """Return a chat's text by the template in the file."""
        text: str = self._post("/apply-template", {"messages": messages})["prompt"]
        return text

    def log_probs(self, ids: Sequence[int], vocabulary: int) -> Tensor:
        """Return log-probabilities (V,) of the token after `ids`."""
        body = {
            "prompt": list(ids),
            "n_predict": 1,
            "n_probs": vocabulary,
            "temperature": 0,
            # Half a character or an end would come without probabilities, which this leaves alone.
            "logit_bias": [[self.tokens("a")[-1], 1000]],
            "cache_prompt": False,
        }
        answer = self._post("/completion", body)
        values = torch.full((vocabulary,), torch.nan)
        for entry in answer["completion_probabilities"][0]["top_logprobs"]:
            values[entry["id"]] = entry["logprob"]
        return values

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self._server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


@contextmanager
def llama_cpp(file: Path) -> Iterator[LlamaCpp]:
    """Serve a file; memory is free again after the block."""
    server = LlamaCpp(file)
    yield server
    del server._server
