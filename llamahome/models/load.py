"""A model, its tokenizer and its policy, by name."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from llamahome.attention import Policy, build_policy
from llamahome.attention.shape import Configured, ModelShape
from llamahome.config import ConfigError, ModelConfig, PolicyConfig
from llamahome.config.policy import CARRIED, policy_config, rescaled
from llamahome.models.adapter_chain import adapter_chain
from llamahome.models.decoder import Decoder, read_decoder
from llamahome.models.describe import carried_policy, read_config
from llamahome.models.errors import ModelCorruptError, ModelError, one_line
from llamahome.models.json_files import read_json
from llamahome.models.manager import ModelManager
from llamahome.models.plain_config import read_plain_config
from llamahome.models.policy_io import load_policy, write_policy
from llamahome.models.tokenizers import check_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

GENERATION_CONFIG = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


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
        """Build the wanted policy for this model, as `choose_policy` does."""
        return choose_policy(wanted, self.policy, self.model, self.path, new_weights=new_weights)


def choose_policy(
    wanted: PolicyConfig,
    carried: Policy | None,
    model: Configured,
    folder: Path,
    *,
    new_weights: bool = False,
) -> Policy:
    """Build the wanted policy; `carried` means the checkpoint's own, or the default.

    A budget that comes with `carried` rescales its budgets.

    Weights come from the checkpoint, even if its numbers (budget, ...) differ from `wanted`'s.

    Args:
        new_weights: lets a policy start from initial weights if the checkpoint has none for it, as
            in a training run.

    Raises:
        ConfigError: for a policy that needs weights which the checkpoint does not have.
    """
    if wanted.name == CARRIED:
        if carried is None:
            carried = build_policy(policy_config("h2o", wanted.budget, None, None, None, 0), model)
            logger.info("the model carries no policy; serving under %s", carried.config)
        elif wanted.budget is not None:
            shape = ModelShape.of(model)
            return carried.with_config(
                rescaled(carried.config, wanted.budget, shape.num_layers, shape.num_kv_heads)
            )
        return carried
    if carried is not None and carried.weights and carried.config.name == wanted.name:
        return build_policy(wanted, model, carried.weights.state_dict())
    built = build_policy(wanted, model)
    if built.weights is not None and not new_weights:
        raise ConfigError(
            f"policy.name={wanted.name!r} has weights, and {folder} carries none for it; "
            "run llamahome calibrate --method learned, train under it first, or choose another"
        )
    return built


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A model's folders, and its small files; the weights are not read yet.

    Attributes:
        chain: the folder that the name resolved to, and the bases of adapters, as `adapter_chain`.
        config: of the base.
        generation_config: of the base, with the tokens that end an answer.
    """

    name: str
    dtype: str
    chain: list[Path]
    config: PreTrainedConfig
    generation_config: GenerationConfig

    @property
    def folder(self) -> Path:
        return self.chain[0]

    @property
    def policy_config(self) -> PolicyConfig | None:
        """The policy that the checkpoint carries, without its weights."""
        carried = carried_policy(self.chain)
        return None if carried is None else carried[0]

    def policy(self, model: Configured) -> Policy | None:
        """Read the policy that the checkpoint carries, for the model once it is loaded."""
        carried = carried_policy(self.chain)
        if carried is None:
            return None
        config, place = carried
        write_policy(model.config, config)
        return load_policy(place, config, model)

    def decoder(self) -> Decoder | None:
        """Read the weights for the C++ kernels alone; None where transformers has to."""
        if len(self.chain) > 1:
            return None
        dtype = _dtype(self.dtype, torch.device("cpu"))
        return read_decoder(self.folder, self.config, dtype, self.generation_config)

    def pretrained(self, device: str | torch.device) -> PreTrainedModel:
        """Load transformers' model, adapters merged; raises as `load_pretrained` does."""
        from llamahome.models.pretrained import load_pretrained

        place = torch.device(device)
        model = load_pretrained(self.chain, _dtype(self.dtype, place), place)
        model.generation_config = self.generation_config
        return model

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Load the tokenizer of the first folder of the chain that has one.

        Raises:
            ModelError: when there is none, or it is broken.
        """
        for folder in self.chain:
            if (folder / TOKENIZER_CONFIG).is_file():
                return _load_tokenizer(folder, self.config)
        raise ModelError(f"{self.folder} has no {TOKENIZER_CONFIG}; save the tokenizer with it")


def find_model(model: ModelConfig, manager: ModelManager) -> FoundModel:
    """Find a model and read its small files.

    Raises:
        ModelNotFoundError: for a name that leads to no model.
        ModelError: for files that are broken.
    """
    folder = manager.resolve(model.name, model.revision)
    chain = adapter_chain(folder, manager.resolve)
    config = read_plain_config(chain[-1]) or read_config(chain[-1])
    return FoundModel(
        name=model.name,
        dtype=model.dtype,
        chain=chain,
        config=config,
        generation_config=read_generation_config(chain[-1], config),
    )


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
    found = find_model(model, manager or ModelManager())
    tokenizer = found.tokenizer()
    loaded = found.pretrained(device)
    policy = found.policy(loaded)
    logger.info("loaded %s from %s, policy %s", model.name, found.folder, policy and policy.config)
    return LoadedModel(loaded, tokenizer, found.folder, policy)


def read_generation_config(folder: Path, config: PreTrainedConfig) -> GenerationConfig:
    """Read `folder`'s generation_config.json; without one, make it from the model's config.

    Raises:
        ModelError: for one that is broken; without it, answers would not end where they should.
    """
    file = folder / GENERATION_CONFIG
    if not file.is_file():
        return GenerationConfig.from_model_config(config)
    content = read_json(file)
    eos = content.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [eos]
    if not all(token is None or type(token) is int for token in ids):
        raise ModelCorruptError(f"{file}: eos_token_id={eos!r} holds no token ids; mend it")
    try:
        return GenerationConfig.from_dict(content)
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelCorruptError(f"{file} is broken ({one_line(error)}); get it again") from error


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return cast(torch.dtype, getattr(torch, name))


def _load_tokenizer(folder: Path, config: PreTrainedConfig) -> PreTrainedTokenizerFast:
    """Load `folder`'s tokenizer; its class follows from its own file, or else from the model's."""
    named = read_json(folder / TOKENIZER_CONFIG).get("tokenizer_class")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder,
            config=None if named is None else config,
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as error:  # tokenizers raises no class of its own
        for name in ("tokenizer.json", "special_tokens_map.json"):
            if (folder / name).is_file():
                read_json(folder / name)
        raise ModelError(
            f"the tokenizer in {folder} cannot be loaded ({one_line(error)}); save it again with "
            "its tokenizer.json"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"{folder} has no fast tokenizer (tokenizer.json)")
    longest = tokenizer.model_max_length
    if not isinstance(longest, int | float):
        raise ModelError(f"{folder / TOKENIZER_CONFIG}: model_max_length={longest!r} is no number")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_chat_template(tokenizer, folder)
    return tokenizer
