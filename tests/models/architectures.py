"""A tiny random model of every causal language model class that transformers has."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 260,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "initializer_range": 0.2,
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "intermediate_size": 128,
    "ffn_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "sliding_window": 64,
    # Mixtures of experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    # Latent attention.
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "qk_head_dim": 32,
    "v_head_dim": 16,
    # Dropout.
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "resid_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
}
LATENT = {"num_key_value_heads": 4}
OWN: dict[str, dict[str, Any]] = {
    "axk1": LATENT,
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "dots3_note_text": LATENT,
    "glm4_moe_lite": LATENT,
    "longcat_flash": LATENT,
    "minicpm3": LATENT,
    "youtu": LATENT,
    "gemma3n_text": {
        "layer_types": ["full_attention"] * 2,
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": 260,
        "hidden_size_per_layer_input": 16,
        "activation_sparsity_pattern": [0.0, 0.0],
        "intermediate_size": [128, 128],
    },
    "gemma4_text": {"vocab_size_per_layer_input": 260, "num_kv_shared_layers": 0},
    "gemma4_unified_text": {"vocab_size_per_layer_input": 260, "num_kv_shared_layers": 0},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4},
        "ffn_config": {
            "hidden_size": 64,
            "ffn_hidden_size": 32,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    },
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    },
    "lfm2_moe": {"layer_types": ["full_attention"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}


# Fields of classes whose own defaults do not fit together.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {
        "text_config": {
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 4,
        }
    },
}


def default_config(config_class: type[PreTrainedConfig]) -> PreTrainedConfig:
    return config_class(**DEFAULTS.get(config_class.model_type, {}))


def tiny_config(config_class: type[PreTrainedConfig]) -> PreTrainedConfig:
    """Return a config whose sizes are those of `SIZES`, as far as the class has such fields."""
    default = default_config(config_class)
    named = {*dir(default), *default.to_dict(), *config_class.attribute_map}
    kind = config_class.model_type
    wanted = SIZES | DEFAULTS.get(kind, {}) | OWN.get(kind, {})
    return config_class(**{name: value for name, value in wanted.items() if name in named})


def tiny_model(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Return a random model, float32, in eval mode; biases and norms are random, too."""
    torch.manual_seed(0)
    model = model_class(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.std() < 1e-3:
                parameter += 0.1 * torch.randn_like(parameter)
    return model
