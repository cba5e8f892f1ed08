"""The engine's slots and queue."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from llamahome.config.checks import above, at_least, one_of, require
from llamahome.config.model import ModelConfig


@dataclass(kw_only=True)
class EngineConfig:
    """One engine.

    Attributes:
        slots: requests decoded at once; each slot holds one request's KV entries.
        max_length: prompt plus generated tokens of one request.
        draft_tokens: draft tokens of one step, all requests together, copied from an earlier
            repetition (prompt lookup); needs the native runner; 0 drafts none.
        protect_system: never evict a chat's system prompt, like sinks.
        split_special_tokens: take control tokens that a chat's messages hold, e.g. `<|im_end|>`, as
            plain text, so that nobody can forge a turn; those of the chat template stay tokens.
        generation_config: `auto` (fields that a client leaves out have the values of the model's
            generation_config.json) or `none`.
        max_queued: requests that may wait for a slot; more are refused.
        max_queued_tokens: prompt tokens that may wait; one longer prompt may wait alone.
        prefill_tokens: prompt tokens of one step, all prompts together, at most.
        slowdown: while requests decode, steps take on average at most so many times what decoding
            alone takes; prompts are read in the rest of the time.
        snapshot_bytes: memory for snapshots, from which prompts with a common prefix start; 0
            computes every prompt from its first token.
        snapshot_dir: folder for snapshots that do not fit into memory; None keeps none.
        snapshot_disk_bytes: size of that folder.
        adapters: folders or model names of the LoRA adapters that a request may name.
        runner: `native` (C++ kernels on the CPU), `torch`, or `auto`: native where it can be.
        weights: precision on a CPU: `int8` (native: symmetric, groups of 64; torch: by channel),
            `fp32`, or `auto`: int8 unless `model.dtype` asks for a precision or `runner` for torch.
        kv_dtype: precision of keys and values: `fp32`, `fp16`, `bf16` (torch), `int8` (native) or
            `auto`: native: fp16 with int8 weights, else fp32; torch: the model's.
        device: `auto` (a GPU when there is one), `cpu`, `cuda`, `cuda:1`, ...
        num_threads: CPU threads; 0 leaves torch's own choice, and a replica's to
            `serve.cpus_per_replica`.
    """

    slots: int = 8
    max_length: int = 8192
    max_queued: int = 64
    max_queued_tokens: int = 131_072
    prefill_tokens: int = 256
    slowdown: float = 2.0
    draft_tokens: int = 7
    protect_system: bool = False
    split_special_tokens: bool = True
    generation_config: str = "auto"
    snapshot_bytes: int = 2**28
    snapshot_dir: str | None = None
    snapshot_disk_bytes: int = 2**32
    adapters: dict[str, str] = field(default_factory=dict)
    runner: str = "auto"
    weights: str = "auto"
    kv_dtype: str = "auto"
    device: str = "auto"
    num_threads: int = 0

    def __post_init__(self) -> None:
        at_least("engine.max_length", self.max_length, 2)
        for name in ("slots", "max_queued", "max_queued_tokens", "prefill_tokens"):
            at_least(f"engine.{name}", getattr(self, name), 1)
        above("engine.slowdown", self.slowdown, 1)
        at_least("engine.snapshot_disk_bytes", self.snapshot_disk_bytes, 1)
        for name in ("draft_tokens", "snapshot_bytes", "num_threads"):
            at_least(f"engine.{name}", getattr(self, name), 0)
        one_of("engine.generation_config", self.generation_config, ("auto", "none"))
        one_of("engine.runner", self.runner, ("auto", "native", "torch"))
        one_of("engine.weights", self.weights, ("auto", "int8", "fp32"))
        one_of("engine.kv_dtype", self.kv_dtype, ("auto", "fp32", "fp16", "bf16", "int8"))
        require(
            self.snapshot_dir is None or (self.snapshot_dir != "" and self.snapshot_bytes > 0),
            "engine.snapshot_dir",
            self.snapshot_dir,
            "name a folder, and leave engine.snapshot_bytes above 0",
        )
        require(
            re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is not None,
            "engine.device",
            self.device,
            "choose auto, cpu, cuda or cuda:<number>",
        )

    def for_model(self, model: ModelConfig) -> EngineConfig:
        """Return the config with the precision that `model.dtype` asks for.

        8 bits are not what a named dtype means, so `weights=auto` is then `fp32`.
        """
        exact = self.weights == "auto" and model.dtype != "auto"
        return replace(self, weights="fp32") if exact else self
