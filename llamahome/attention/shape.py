"""The numbers of a model that its KV cache depends on."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Layers, heads and head size of a decoder, as transformers names them."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelShape:
        """Read the shape from the model's config."""
        return cls.of_config(model.config)

    @classmethod
    def of_config(cls, config: PreTrainedConfig) -> ModelShape:
        """Read the shape from a decoder's config; fields it does not have follow from others."""
        heads: int = config.num_attention_heads
        return cls(
            num_layers=config.num_hidden_layers,
            num_heads=heads,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )
