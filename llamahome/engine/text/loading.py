"""From names in the config to what an engine is made of: weights, tokenizer, policy, limits."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from llamahome.attention import Policy
from llamahome.attention.shape import context_length, exact_length
from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.config.policy import CARRIED
from llamahome.engine.runners.native_model import unsupported
from llamahome.models import FoundModel, ModelManager, choose_policy, find_model
from llamahome.models.decoder import Decoder
from llamahome.native import NativeUnavailableError, load_native

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    Weights = PreTrainedModel | PeftModel | Decoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The arguments of a `TextEngine`; `config` within the context."""

    model: Weights
    tokenizer: PreTrainedTokenizerFast
    policy: Policy
    config: EngineConfig


def load_parts(
    model: ModelConfig, policy: PolicyConfig, config: EngineConfig, manager: ModelManager
) -> Parts:
    """Load a model and the policy it carries, unless `policy` names another."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    found = find_model(model, manager)
    tokenizer = found.tokenizer()
    wanted = found.policy_config or PolicyConfig() if policy.name == CARRIED else policy
    config = _within_context(config.for_model(model), found.config, wanted)
    weights = _load_weights(found, wanted, config, manager)
    carried = found.policy(weights)
    chosen = choose_policy(policy, carried, weights, found.folder)
    # A carried policy that is rescaled is still what the model was trained under.
    if carried is not None and policy.name != CARRIED and chosen.config != carried.config:
        trained = carried.config
        logger.warning("serving under %s; the model was trained under %s", policy, trained)
    return Parts(model=weights, tokenizer=tokenizer, policy=chosen, config=config)


def torch_device(name: str) -> str:
    """Return the device that `engine.device` names; `auto` is a GPU where there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _load_weights(
    found: FoundModel, policy: PolicyConfig, config: EngineConfig, manager: ModelManager
) -> Weights:
    """Load what the engine computes with: the weights alone where the C++ kernels need no more."""
    device = torch_device(config.device)
    if _runs_natively(found.config, policy, config) and (decoder := found.decoder()) is not None:
        return decoder
    model = found.pretrained(device)
    if not config.adapters:
        return model
    from llamahome.models.adapters import attach_adapters

    return attach_adapters(
        model, {name: manager.resolve(source) for name, source in config.adapters.items()}
    )


def _runs_natively(model: PreTrainedConfig, policy: PolicyConfig, config: EngineConfig) -> bool:
    on_cpu = torch_device(config.device) == "cpu"
    if config.runner == "torch" or config.adapters or not on_cpu:
        return False
    if unsupported(model, policy, config.max_length) is not None:
        return False
    try:
        load_native()
    except NativeUnavailableError:
        return False
    return True


def _within_context(
    config: EngineConfig, model: PreTrainedConfig, policy: PolicyConfig
) -> EngineConfig:
    """Return `config`, its context cut to the model's unless positions roll."""
    limit = context_length(model)
    endless = policy.positions == "rolling" and None not in policy.pattern.values()
    endless = endless and policy.budget is not None and exact_length(model) is None
    if config.max_length <= limit or endless:
        return config
    logger.info(
        "engine.max_length=%d is cut to the model's context of %d", config.max_length, limit
    )
    return replace(config, max_length=limit)


def eos_token_ids(model: Weights, tokenizer: PreTrainedTokenizerFast) -> Collection[int]:
    eos = cast(Any, model).generation_config.eos_token_id
    ids = eos if isinstance(eos, list) else [eos]
    return {token for token in (*ids, tokenizer.eos_token_id) if token is not None}
