"""A name for what a model computes, the same wherever and whenever it is loaded."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llamahome.models.decoder import Decoder, is_adapted

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# Fields of a config that say where it came from and how it is computed, not what.
NOT_COMPUTED = {"_name_or_path", "transformers_version", "architectures", "use_cache"}


@torch.no_grad()
def fingerprint(model: PreTrainedModel | PeftModel | Decoder) -> str:
    """Return a digest of a model's config, weights and adapters, names and order included.

    Each weight is read once, about 1 GB a second on each core.
    """
    config = {k: v for k, v in model.config.to_dict().items() if k not in NOT_COMPUTED}
    digest = blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=16)
    if isinstance(model, Decoder):
        weights = dict(model.tensors)
    else:
        weights = dict(chain(model.named_parameters(), model.named_buffers()))
    if is_adapted(model):
        digest.update(repr(_scalings(model)).encode())
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for name, content in zip(weights, pool.map(_content, weights.values()), strict=True):
            weight = weights[name]
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + content)
    return digest.hexdigest()


def _scalings(model: PeftModel) -> list[tuple[str, object]]:
    from peft.tuners.lora import LoraLayer

    modules = model.named_modules()
    return [(n, sorted(m.scaling.items())) for n, m in modules if isinstance(m, LoraLayer)]


def _content(weight: Tensor) -> bytes:
    numbers = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return blake2b(numbers.numpy().data, digest_size=16).digest()
