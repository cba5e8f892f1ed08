"""A model and its tokenizer, loaded into memory by name."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from llamahome.attention import Policy, build_policy
from llamahome.config import ConfigError, ModelConfig, PolicyConfig
from llamahome.config.policy import CARRIED
from llamahome.models.adapters import adapter_chain, merge_adapter
from llamahome.models.describe import carried_policy, read_config, weight_files
from llamahome.models.errors import ModelCorruptError, ModelError
from llamahome.models.manager import ModelManager
from llamahome.models.policy_io import load_policy, write_policy
from llamahome.models.probe import check_layers, check_outputs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, its tokenizer and its policy.

    Attributes:
        tokenizer: one with a pad token.
        path: the folder that the name resolved to.
        policy: the one that the checkpoint carries, with its weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    path: Path
    policy: Policy | None

    def policy_for(self, wanted: PolicyConfig, *, new_weights: bool = False) -> Policy:
        """Build the wanted policy; `carried` means the checkpoint's own, or the default.

        Weights come from the checkpoint, even if its numbers (budget, ...) differ from `wanted`'s.

        Args:
            new_weights: lets a policy start from initial weights if the checkpoint has none for
                it, as in a training run.

        Raises:
            ConfigError: for a policy that needs weights which the checkpoint does not have.
        """
        carried = self.policy
        if wanted.name == CARRIED:
            if carried is not None:
                return carried
            logger.info("the model carries no policy; serving under %s", PolicyConfig())
            return build_policy(PolicyConfig(), self.model)
        if carried is not None and carried.weights and carried.config.name == wanted.name:
            return build_policy(wanted, self.model, carried.weights.state_dict())
        built = build_policy(wanted, self.model)
        if built.weights is not None and not new_weights:
            raise ConfigError(
                f"policy.name={wanted.name!r} has weights, and {self.path} carries none for it; "
                "train under it first, or choose another policy"
            )
        return built


def load_model(
    model: ModelConfig,
    *,
    device: str | torch.device = "cpu",
    manager: ModelManager | None = None,
) -> LoadedModel:
    """Find, check and load a model with its policy; merge adapters into their base.

    Raises:
        ModelNotFoundError: for a name that leads to no model.
        ModelCorruptError: for damaged or incomplete weights.
        ModelError: for a model that is no decoder with transformers' attention interface, or has
            no safetensors or no fast tokenizer.
        PolicyFormatError: for a policy that cannot be read.
    """
    manager = manager or ModelManager()
    folder = manager.resolve(model.name, model.revision)
    chain = adapter_chain(folder, manager.resolve)
    loaded = _load_weights(chain[-1], _dtype(model.dtype, torch.device(device)))
    for adapter in reversed(chain[:-1]):
        loaded = merge_adapter(loaded, adapter)
    loaded.to(device)  # type: ignore[arg-type]  # transformers' decorator hides `self`
    if not is_deepspeed_zero3_enabled():  # which leaves a worker only a part of each weight
        check_outputs(loaded.eval(), folder)
    policy, carried = None, carried_policy(chain)
    if carried is not None:
        config, place = carried
        write_policy(loaded.config, config)
        policy = load_policy(place, config, loaded)
    logger.info("loaded %s from %s, policy %s", model.name, folder, policy and policy.config)
    return LoadedModel(loaded.eval(), _load_tokenizer(chain), folder, policy)


def decoder_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class of `config`'s model: a decoder whose attention can be replaced.

    Raises:
        ModelError: for any other model.
    """
    model_class = cast(
        "type[PreTrainedModel] | None", MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    )
    named = config.architectures or []
    if model_class is None or (named and model_class.__name__ not in named):
        raise ModelError(
            f"model_type={config.model_type!r} ({', '.join(named) or 'no architecture named'}) is "
            "no decoder-only language model; use one like Llama, SmolLM2, Mistral or Qwen"
        )
    if not model_class.is_backend_compatible():
        raise ModelError(
            f"{model_class.__name__} does not go through transformers' attention interface, so no "
            "policy can be applied to it; use a model like Llama, SmolLM2, Mistral or Qwen"
        )
    return model_class


def _load_weights(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    config = read_config(folder)
    model_class = decoder_class(config)
    check_layers(config, folder)
    weight_files(folder)
    try:
        loaded: Any = model_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ModelCorruptError(f"weights in {folder} are damaged: {error}") from error
    model, report = loaded
    # transformers fills missing weights with random numbers and only warns.
    if report["missing_keys"]:
        names = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelCorruptError(f"weights in {folder} lack {names}; get the model again")
    return cast(PreTrainedModel, model)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return cast(torch.dtype, getattr(torch, name))


def _load_tokenizer(chain: list[Path]) -> PreTrainedTokenizerFast:
    """Load the tokenizer of the first folder of an `adapter_chain` that has one."""
    for folder in chain:
        if (folder / "tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            break
    else:
        raise ModelError(f"{chain[0]} has no tokenizer_config.json; save the tokenizer with it")
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"{folder} has no fast tokenizer (tokenizer.json)")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
