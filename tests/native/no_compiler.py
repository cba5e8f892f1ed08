"""Print as JSON how an engine behaves if the kernels cannot be built; arguments: values of CXX."""

from __future__ import annotations

import json
import logging
import os
import sys

from transformers import LlamaConfig, LlamaForCausalLM

from llamahome.attention import build_policy
from llamahome.config import ConfigError, EngineConfig, PolicyConfig
from llamahome.engine import Engine, SamplingParams
from llamahome.native import NativeUnavailableError, load_native


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _reason(compiler: str) -> str:
    os.environ["CXX"] = compiler
    try:
        load_native()
    except NativeUnavailableError as error:
        return str(error)
    return ""


def _error(runner: str) -> str:
    try:
        _engine(runner)
    except ConfigError as error:
        return str(error)
    return ""


def _engine(runner: str) -> Engine:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    policy = build_policy(PolicyConfig.dense())
    return Engine(
        LlamaForCausalLM(config).eval(),
        policy,
        EngineConfig(runner=runner, slots=1, max_length=64),
    )


def main(compilers: list[str]) -> None:
    kept = _Kept()
    logging.getLogger("llamahome").addHandler(kept)
    reasons = [_reason(compiler) for compiler in compilers]
    engine = _engine("auto")
    engine.submit("one", [3, 4, 5], SamplingParams(max_tokens=3))
    tokens = 0
    while engine.has_work:
        tokens += sum(delta.token is not None for delta in engine.step())
    found = {
        "reasons": reasons,
        "runner": engine.stats().runner,
        "tokens": tokens,
        "warnings": kept.messages,
        "native": _error("native"),
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
