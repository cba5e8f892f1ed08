"""Small random decoders of any shape, and steps of mixed rows for runners."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llamahome.engine.runners.contract import RowInput, Runner
from llamahome.engine.runners.native import NativeRunner
from llamahome.native import load_native

VOCAB = 260  # no multiple of 32, as the kernels' panels are
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 96,  # no multiple of 64, as a group of int8 weights is
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,  # sharper attention than 0.02 gives, so that a wrong key shows
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def random_llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changes})).eval()


def random_qwen2(**changes: Any) -> Qwen2ForCausalLM:
    """Return a model whose queries, keys and values have biases that are not 0."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**{**SHAPE, **changes})).eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    return model


def random_qwen3(**changes: Any) -> Qwen3ForCausalLM:
    """Return a model whose norms of queries and keys have weights that are not 1."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**{**SHAPE, **changes})).eval()
    for name, weight in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            torch.nn.init.normal_(weight, mean=1.0, std=0.5)
    return model


def skip_unless_here(isa: str) -> None:
    """Skip the test on a machine without these instructions."""
    load_native()
    try:
        torch.classes.llamahome.Model(32, 2, 1, 16, 1e-5, 1.0, 1, isa)
    except RuntimeError as error:
        pytest.skip(f"{isa}: {error}")


def native(model: PreTrainedModel, policy: Any, **options: Any) -> NativeRunner:
    """Build the C++ runner in float32, unless `options` ask for something else."""
    exact = {"num_slots": 3, "max_length": 2048, "int8": False, "kv_dtype": torch.float32}
    return NativeRunner(model, policy, **{**exact, "threads": 1, **options})


def tokens_of(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 256, (count,), generator=generator).tolist()


def mixed_steps(
    runner: Runner, steps: int, seed: int = 0
) -> Iterator[tuple[list[RowInput], Tensor]]:
    """Yield steps over three slots, and their logits: rows read a chunk or one token, or rest."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rows = []
        for slot in range(3):
            kind = int(torch.randint(4, (), generator=generator))
            room = runner.slots.room(slot)
            if kind == 0 and slot != step % 3:
                continue
            count = int(torch.randint(1, room + 1, (), generator=generator)) if kind == 1 else 1
            count = room if kind == 2 else count
            rows.append(RowInput(slot=slot, tokens=tokens_of(count, seed=1000 * step + slot)))
        yield rows, runner.forward(rows).logits
