"""A model's numbers, from its config and the headers of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import AutoConfig, PreTrainedConfig

from llamahome.attention.shape import ModelShape, context_length
from llamahome.config import PolicyConfig
from llamahome.config.policy import entries
from llamahome.models.errors import CONFIG_FAILURES, ModelError, one_line
from llamahome.models.json_files import read_json
from llamahome.models.policy_io import read_adapter_policy, read_policy
from llamahome.models.weight_files import DTYPES, count_weights

Kind = Literal["embedded", "run", "local", "hub"]


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Facts about one model.

    Attributes:
        revision: set for a hub model that was asked for at a revision.
        parameters: number of stored weights; tied ones count once.
        dtype: the most common one on disk; the bytes of keys and values assume it.
        kv_bytes_per_token: bytes of one token's keys and values over all layers.
        slot_tokens: entries per KV head in one slot.
        memory_bytes: bytes of the weights and of one slot's keys and values.
        policy: the one that the checkpoint carries.
    """

    name: str
    kind: Kind
    path: Path
    revision: str | None
    parameters: int
    dtype: str
    context_length: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    kv_bytes_per_token: int
    slot_tokens: int
    memory_bytes: int
    policy: PolicyConfig | None

    @property
    def policy_entries(self) -> int | None:
        """Entries per KV head that the carried policy keeps on average; None without a budget."""
        if self.policy is None:
            return None
        return self.policy.average(self.layers, self.kv_heads, self.context_length)


def describe_folder(
    chain: list[Path], name: str, kind: Kind, revision: str | None, budget: float | None
) -> ModelInfo:
    """Describe the model that an `adapter_chain` gives once merged; see `ModelManager.describe`."""
    config = read_config(chain[-1])
    text = config.get_text_config(decoder=True)
    weights = count_weights(chain[-1])
    dtype, itemsize = DTYPES[weights.most_common(1)[0][0]]
    nbytes = sum(count * DTYPES[stored][1] for stored, count in weights.items())
    carried = carried_policy(chain)
    policy = None if carried is None else carried[0]
    shape = ModelShape.of_config(text)
    per_token = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * itemsize
    context = context_length(text)
    held = None if policy is None else policy.average(shape.num_layers, shape.num_kv_heads, context)
    slot = (None if budget is None else entries(budget, context)) or held or context
    return ModelInfo(
        name=name,
        kind=kind,
        path=chain[0],
        revision=revision,
        parameters=weights.total(),
        dtype=dtype,
        context_length=context,
        layers=shape.num_layers,
        heads=shape.num_heads,
        kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        kv_bytes_per_token=per_token,
        slot_tokens=slot,
        memory_bytes=nbytes + slot * per_token,
        policy=policy,
    )


def read_config(folder: Path) -> PreTrainedConfig:
    """Read `folder`'s config.json. Code that the folder may contain is never run."""
    file = folder / "config.json"
    content = read_json(file)
    quantized = content.get("quantization_config")
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ModelError(
            f"{file}: quantization_config.quant_method={method!r} packs the weights, which no "
            "runner here reads; use the model in float32, bfloat16 or float16"
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        _check_shape(ModelShape.of_config(config.get_text_config(decoder=True)))
    except CONFIG_FAILURES as error:
        raise ModelError(f"{file}: it cannot be used ({one_line(error)})") from error
    return config


def _check_shape(shape: ModelShape) -> None:
    for name, value in vars(shape).items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} is no number of at least 1")
    if shape.num_heads % shape.num_kv_heads:
        raise ValueError(f"{shape.num_heads} heads share {shape.num_kv_heads} KV heads unevenly")


def carried_policy(chain: list[Path]) -> tuple[PolicyConfig, Path] | None:
    """Return the first policy that a folder of an `adapter_chain` carries, and that folder."""
    adapters, base = chain[:-1], chain[-1]
    policies = [read_adapter_policy(folder) for folder in adapters]
    policies.append(read_policy(base))
    found = zip(policies, chain, strict=True)
    return next(((policy, folder) for policy, folder in found if policy is not None), None)
