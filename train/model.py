"""The model to train: in training's precision, under hybrid attention, with adapters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import HfDeepSpeedConfig
from transformers.integrations.neftune import neftune_post_forward_hook

from llamahome.attention import HybridAttention, Policy, walk_once
from llamahome.config import ModelConfig, TrainRoot
from llamahome.models import LoadedModel, ModelManager, load_model
from llamahome.models.four_bits import quantize_base
from llamahome.models.load import choose_policy, find_model
from train.lora import add_adapters
from train.objectives.chunked_head import attach_chunked_head

DTYPES = {"fp32": "float32", "mixed": "float32", "bf16": "bfloat16"}
PRODUCTS = {"fp32": torch.float32, "mixed": torch.bfloat16}  # dtype on 4-bit weights
POLICY_MODULE = "kv_policy"


def model_to_train(root: TrainRoot) -> ModelConfig:
    """Return the model to load, in the precision that it is trained in."""
    return replace(root.model, dtype=DTYPES[root.trainer.precision])


def prepare_model(
    root: TrainRoot, settings: dict[str, Any], policy_model: ModelConfig
) -> tuple[PreTrainedModel | PeftModel, Policy, PreTrainedTokenizerBase]:
    """Load the model and make it ready to train; under ZeRO-3 a worker loads only its shards.

    Weights of the policy, if it has any, are a submodule of the model, so that DeepSpeed shards,
    reduces, optimises and checkpoints them with the others.

    Args:
        settings: DeepSpeed's config.
        policy_model: the model whose weights of the policy are trained on, if it has any.
    """
    trainer = root.trainer
    with _sharded_loading(settings):
        loaded = load_model(model_to_train(root))
        model: PreTrainedModel | PeftModel = loaded.model
        HybridAttention.attach(loaded.model)
        attach_chunked_head(loaded.model)
        if trainer.neftune_alpha:
            add_noise(loaded.model, trainer.neftune_alpha)
        if trainer.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": walk_once})
        if trainer.lora.base_bits is not None:
            quantize_base(loaded.model, PRODUCTS[trainer.precision])
        if trainer.method == "lora":
            model = add_adapters(loaded.model, trainer.lora, root.model.name)
    policy = _policy(root, loaded, policy_model)
    if policy.weights is not None:
        model.add_module(POLICY_MODULE, policy.weights.requires_grad_(True))
    return model, policy, loaded.tokenizer


def _policy(root: TrainRoot, loaded: LoadedModel, policy_model: ModelConfig) -> Policy:
    if policy_model == root.model:
        return loaded.policy_for(root.policy, new_weights=True)
    found = find_model(policy_model, ModelManager())
    carried = found.policy(loaded.model)
    return choose_policy(root.policy, carried, loaded.model, found.folder, new_weights=True)


def bare_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the model without the adapters' wrapping, if it has any."""
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    return cast(PreTrainedModel, bare)


def add_noise(model: PreTrainedModel, alpha: float) -> None:
    """Add noise to embeddings in training: NEFTune (Jain et al. 2023, arXiv 2310.05914).

    It is uniform within alpha / sqrt(T x H), for T tokens of a row and H numbers of an embedding. A
    teacher or reference, which has no gradient, predicts without it.
    """
    embeddings: Any = model.get_input_embeddings()
    embeddings.neftune_noise_alpha = alpha
    embeddings.register_forward_hook(_noise)


def _noise(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return output
    return cast(Tensor, neftune_post_forward_hook(module, inputs, output))


@contextmanager
def _sharded_loading(settings: dict[str, Any]) -> Iterator[None]:
    """Make transformers shard each parameter as soon as it exists, under ZeRO-3."""
    if settings["zero_optimization"]["stage"] < 3:
        yield
        return
    loading = HfDeepSpeedConfig(settings)
    try:
        yield
    finally:
        del loading  # transformers holds it weakly: from here on, models load whole again
