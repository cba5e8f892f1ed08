"""A Llama-like decoder as a config and named weights, without transformers' modelling code.

The C++ kernels need no more, and that code takes seconds to import.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from llamahome.attention.rotary import frequencies
from llamahome.attention.shape import ModelShape
from llamahome.models.weight_files import opened, weight_files

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class LowRank:
    """A LoRA adapter, by the names of the modules that it changes.

    Attributes:
        pairs: down (r, K) and up (N, r), scaled.
        norms: weights in place of the model's own.
    """

    pairs: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A decoder's config and weights, under transformers' names; `lm_head.weight` is always there.

    Attributes:
        generation_config: with the tokens that end an answer, and its authors' sampling.
        adapters: by name.
    """

    config: PreTrainedConfig
    tensors: Mapping[str, Tensor]
    generation_config: GenerationConfig
    adapters: Mapping[str, LowRank] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.tensors["model.norm.weight"].device

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors["model.norm.weight"].dtype

    @classmethod
    def of(cls, model: PreTrainedModel | PeftModel | Decoder) -> Decoder:
        """Return the weights of a model, and of the adapters that PEFT has put into it."""
        if isinstance(model, Decoder):
            return model
        if is_adapted(model):
            return _of_adapted(model)
        return cls(
            config=model.config,
            tensors=_parameters(model),
            generation_config=_generation_config(model),
        )


def is_adapted(model: object) -> TypeGuard[PeftModel]:
    """Return whether PEFT has put adapters into a model; PEFT is not imported to find out."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def plain_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the model that PEFT has put adapters into, or the model itself."""
    plain: PreTrainedModel = model.get_base_model() if is_adapted(model) else model  # type: ignore[assignment]
    return plain


def read_decoder(
    folder: Path,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    generation_config: GenerationConfig,
) -> Decoder | None:
    """Read `folder`'s weights as they are; None where transformers has to convert or refuse them.

    Args:
        config: of one of `FAMILIES`.
    """
    if getattr(config, "quantization_config", None) is not None:
        return None
    expected = _expected_shapes(config)
    found: dict[str, Tensor] = {}
    for file in weight_files(folder):
        with opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118  # it has no iterator of its own
                shape = tensors.get_slice(name).get_shape()
                stored = tensors.get_slice(name).get_dtype()
                if name in found or shape != expected.get(name) or stored not in DTYPES:
                    return None
                found[name] = tensors.get_tensor(name).to(dtype)
    if found.keys() != expected.keys():
        return None
    found.setdefault("lm_head.weight", found["model.embed_tokens.weight"])
    return Decoder(config=config, tensors=found, generation_config=generation_config)


def rotary_angles(config: PreTrainedConfig, length: int) -> tuple[Tensor, Tensor]:
    """Compute cos and sin (length, head_dim / 2) in float32, for angles of the position alone."""
    static = frequencies(config)
    assert static is not None  # the kernels take no other models
    inv_freq, factor = static
    angles = torch.arange(length).float()[:, None] * inv_freq
    return angles.cos() * factor, angles.sin() * factor


def _expected_shapes(config: PreTrainedConfig) -> dict[str, list[int]]:
    """Return the weights of one of `FAMILIES`, as a folder holds them."""
    shape = ModelShape.of_config(config)
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    linears = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if config.model_type == "qwen3":
        norms |= {"self_attn.q_norm": shape.head_dim, "self_attn.k_norm": shape.head_dim}
    expected = {"model.embed_tokens.weight": [config.vocab_size, hidden]}
    for index in range(shape.num_layers):
        layer = f"model.layers.{index}"
        expected |= {f"{layer}.{name}.weight": list(size) for name, size in linears.items()}
        expected |= {f"{layer}.{name}.weight": [size] for name, size in norms.items()}
        biased = (name for name in linears if _has_bias(config, name))
        expected |= {f"{layer}.{name}.bias": [linears[name][0]] for name in biased}
    expected["model.norm.weight"] = [hidden]
    if not config.tie_word_embeddings:
        expected["lm_head.weight"] = [config.vocab_size, hidden]
    return expected


def _has_bias(config: PreTrainedConfig, linear: str) -> bool:
    if config.model_type == "qwen2":
        return linear in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    part = "mlp_bias" if linear.startswith("mlp") else "attention_bias"
    known = {"llama": ("mlp_bias", "attention_bias"), "qwen3": ("attention_bias",)}
    return part in known.get(config.model_type, ()) and bool(getattr(config, part))


def _generation_config(model: Any) -> GenerationConfig:
    config: GenerationConfig = model.generation_config
    return config


def _parameters(model: Any) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}


def _of_adapted(model: PeftModel) -> Decoder:
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    plain: Any = plain_model(model)
    adapters = {name: LowRank() for name in model.peft_config}
    for path, module in plain.named_modules():
        own: Any = module
        if isinstance(module, LoraLayer):
            for name, down in own.lora_A.items():
                up = own.lora_B[name].weight.detach() * own.scaling[name]
                adapters[name].pairs[path] = (down.weight.detach(), up)
        elif isinstance(module, ModulesToSaveWrapper):
            for name, trained in own.modules_to_save.items():
                adapters[name].norms[path] = trained.weight.detach()
    tensors = {
        name.replace(".base_layer", "").replace(".original_module", ""): parameter
        for name, parameter in _parameters(plain).items()
        if ".lora_" not in name and ".modules_to_save." not in name
    }
    return Decoder(
        config=plain.config,
        tensors=tensors,
        generation_config=_generation_config(plain),
        adapters=adapters,
    )
