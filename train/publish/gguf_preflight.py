"""Models that llama.cpp would not compute as they were trained, refused before anything is written.

llama.cpp knows no eviction, no weights of a policy, and not every rope scaling or tokenizer.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from typing import Any

from gguf import MODEL_ARCH
from transformers import PreTrainedConfig

from llamahome.config import PolicyConfig
from train.errors import ExportError

# By transformers' model_type. llama.cpp computes Mistral as a Llama.
ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
}
# Fields that llama.cpp takes as given for these architectures.
GIVEN: dict[str, dict[str, Any]] = {
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    "mistral": {"hidden_act": "silu"},
    "qwen2": {"hidden_act": "silu"},
    "qwen3": {"hidden_act": "silu", "attention_bias": False},
}
ROPES = ("default", "linear", "llama3")


def check_model(config: PreTrainedConfig, policy: PolicyConfig | None, allow_dense: bool) -> None:
    """Refuse a model that llama.cpp cannot run, or would run in another way than it was trained.

    Raises:
        ExportError: names the field and the cure.
    """
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise ExportError(
            f"model_type={kind!r}: GGUF is written for {', '.join(ARCHITECTURES)}; "
            "use --format merged and convert it with llama.cpp's own script"
        )
    for field, value in GIVEN[kind].items():
        if getattr(config, field, value) != value:
            raise ExportError(
                f"{field}={getattr(config, field)!r} of config.json would be lost in GGUF, where "
                f"a {kind} has {value!r}; use --format merged"
            )
    _check_rope(config)
    _check_window(config)
    _check_policy(policy, allow_dense)


def served_dense(policy: PolicyConfig | None) -> bool:
    """Tell whether a model was trained under eviction, which llama.cpp does not have."""
    return policy is not None and policy.name != "full"


def _check_rope(config: PreTrainedConfig) -> None:
    rope = config.rope_parameters
    kind = rope["rope_type"]
    partial = rope.get("partial_rotary_factor", 1.0)
    if kind not in ROPES or (kind == "llama3" and ARCHITECTURES[config.model_type].name != "LLAMA"):
        raise ExportError(
            f"rope_parameters.rope_type={kind!r} of config.json would be lost in GGUF, which is "
            f"written for {', '.join(ROPES)} (llama3 in a Llama); use --format merged"
        )
    if partial != 1.0:
        raise ExportError(
            f"rope_parameters.partial_rotary_factor={partial} of config.json would be lost in "
            "GGUF; use --format merged"
        )


def _check_window(config: PreTrainedConfig) -> None:
    sliding = config.model_type == "mistral" or "sliding_attention" in (
        getattr(config, "layer_types", None) or ()
    )
    window = getattr(config, "sliding_window", None)
    if sliding and window is not None and window < config.max_position_embeddings:
        raise ExportError(
            f"sliding_window={window} of config.json would be lost in GGUF, where a "
            f"{config.model_type} attends to all tokens; use --format merged"
        )


def _check_policy(policy: PolicyConfig | None, allow_dense: bool) -> None:
    if policy is None or not served_dense(policy) or allow_dense:
        return
    weights = ", and no weights of a policy" if policy.name == "learned" else ""
    raise ExportError(
        f"policy.name={policy.name}, policy.budget={policy.budget}: the model was trained with "
        f"eviction, and llama.cpp has none{weights}: it will be served dense, with a cache that "
        "grows with the text; give --allow-dense if that is wanted, or --format merged"
    )
