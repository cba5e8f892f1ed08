"""From a name to a model and tokenizer in memory."""

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

from llamahome.attention import Policy, build_policy
from llamahome.config import ConfigError, ModelConfig, PolicyConfig
from llamahome.config.policy import CARRIED
from llamahome.models.adapters import adapter_chain, merge_adapter
from llamahome.models.describe import carried_policy, read_config, weight_files
from llamahome.models.errors import ModelCorruptError, ModelError
from llamahome.models.manager import ModelManager
from llamahome.models.policy_io import load_policy, write_policy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, with all that came with it.

    Attributes:
        tokenizer: with a pad token.
        path: folder that the name led to.
        policy: that the checkpoint carries, with its weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    path: Path
    policy: Policy | None

    def policy_for(self, wanted: PolicyConfig, *, new_weights: bool = False) -> Policy:
        """Build the policy that is asked for; `carried` is the checkpoint's own, or the default.

        Weights come from the checkpoint, whatever numbers are asked for with them.

        Args:
            new_weights: whether a policy may begin with weights of its own, as in a training run,
                where the checkpoint brings none for it.

        Raises:
            ConfigError: for a policy whose weights the checkpoint does not bring.
        """
        carried = self.policy
        if wanted.name == CARRIED:
            if carried is not None:
                return carried
            logger.info("the model carries no policy; serving under %s", PolicyConfig())
            return build_policy(PolicyConfig(), self.model)
        if carried is not None and carried.config != wanted and not new_weights:
            logger.warning("using %s; the model was trained under %s", wanted, carried.config)
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
    """Find, check and load a model with its policy; adapters are merged into their base.

    Raises:
        ModelNotFoundError: when the name leads nowhere.
        ModelCorruptError: when weights are damaged or incomplete.
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
    policy, carried = None, carried_policy(chain)
    if carried is not None:
        config, place = carried
        write_policy(loaded.config, config)
        policy = load_policy(place, config, loaded)
    logger.info("loaded %s from %s, policy %s", model.name, folder, policy and policy.config)
    return LoadedModel(loaded.eval(), _load_tokenizer(chain), folder, policy)


def decoder_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class for `config`'s model, if it is a decoder whose attention can be replaced."""
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
    # transformers fills what a file lacks with random numbers and only warns.
    if report["missing_keys"]:
        names = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelCorruptError(f"weights in {folder} lack {names}; get the model again")
    return cast(PreTrainedModel, model)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return cast(torch.dtype, getattr(torch, name))


def _load_tokenizer(chain: list[Path]) -> PreTrainedTokenizerFast:
    """The tokenizer of the uppermost folder that has one."""
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
