"""The policy that a checkpoint carries: the one it was trained under.

Its numbers are in config.json, as `{"llamahome": {"format": 1, "policy": {...}}}`: transformers
keeps unknown keys, so the policy survives `save_pretrained` and `from_pretrained`, and the folder
stays a plain one. An adapter's folder has the same value in `llamahome.json`: transformers would
take a folder with a config.json for a whole model, and PEFT's own config refuses unknown keys.
A policy's weights, if it has any, are in `policy.safetensors`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llamahome.attention import Policy, build_policy
from llamahome.attention.shape import Configured
from llamahome.config import ConfigError, PolicyConfig, load_config
from llamahome.config.policy import CARRIED
from llamahome.models.errors import PolicyFormatError
from llamahome.models.json_files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

KEY = "llamahome"
ADAPTER_POLICY = "llamahome.json"
POLICY_WEIGHTS = "policy.safetensors"
FORMAT = 1


def write_policy(config: PreTrainedConfig, policy: PolicyConfig) -> None:
    """Put `policy` into `config`; `config.save_pretrained` then writes it."""
    setattr(config, KEY, encode_policy(policy))


def read_policy(folder: Path) -> PolicyConfig | None:
    """Return the policy that the config.json of a whole model carries, if any.

    Raises:
        PolicyFormatError: for another version's format, or an invalid policy.
    """
    file = folder / "config.json"
    carried = read_json(file).get(KEY)
    return None if carried is None else _decode(carried, f"{file}: {KEY}")


def write_adapter_policy(folder: Path, policy: PolicyConfig) -> None:
    """Write `policy` into the folder of an adapter."""
    (folder / ADAPTER_POLICY).write_text(json.dumps(encode_policy(policy), indent=2) + "\n")


def read_adapter_policy(folder: Path) -> PolicyConfig | None:
    """Return the policy that the adapter in `folder` carries, if any.

    Raises:
        PolicyFormatError: as in `read_policy`.
    """
    file = folder / ADAPTER_POLICY
    return _decode(read_json(file), str(file)) if file.is_file() else None


def write_policy_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    """Write the weights of the policy that `folder` carries."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / POLICY_WEIGHTS)


def load_policy(folder: Path, policy: PolicyConfig, model: Configured) -> Policy:
    """Build the policy that `folder` carries, with its weights.

    Raises:
        PolicyFormatError: for weights that are missing, damaged, or not this policy's.
    """
    file = folder / POLICY_WEIGHTS
    try:
        weights = load_file(file) if file.is_file() else None
        built = build_policy(policy, model, weights)
    except SafetensorError as error:
        raise PolicyFormatError(f"{file} is damaged ({error}); get the model again") from error
    except ConfigError as error:
        raise PolicyFormatError(f"{folder}: {error}; export the model again") from error
    if built.weights is not None and weights is None:
        raise PolicyFormatError(
            f"{folder} has no {POLICY_WEIGHTS}, which policy.name={policy.name!r} needs; export "
            "the model again"
        )
    return built


def encode_policy(policy: PolicyConfig) -> dict[str, Any]:
    """Return the value that config.json holds; raises ValueError for `carried`, which is none."""
    if policy.name == CARRIED:
        raise ValueError(
            "policy.name='carried' says where to look for a policy and is none itself; "
            "write the policy that was used"
        )
    return {"format": FORMAT, "policy": asdict(policy)}


def _decode(carried: object, place: str) -> PolicyConfig:
    if not isinstance(carried, dict) or not isinstance(carried.get("policy"), dict):
        raise PolicyFormatError(f"{place}={carried!r} holds no policy; export the model again")
    if carried.get("format") != FORMAT:
        raise PolicyFormatError(
            f"{place}.format={carried.get('format')!r}, this version reads {FORMAT}; "
            "use the version of LlamaHome that exported the model"
        )
    # Older checkpoints name no decay: mass did not decay then.
    values = {"decay": None, **carried["policy"]}
    # A checkpoint may come from anyone: "${oc.env:...}" must never be resolved.
    if "${" in json.dumps(values):
        raise PolicyFormatError(f"{place}.policy={values!r} holds an interpolation")
    try:
        return load_config(OmegaConf.create(values), PolicyConfig)
    except ConfigError as error:
        raise PolicyFormatError(f"{place}.policy: {error}") from error
