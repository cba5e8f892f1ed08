"""A name for what a model computes, the same wherever and whenever it is loaded."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import chain

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

# Fields of a config that say where it came from and how it is computed, not what.
NOT_COMPUTED = {"_name_or_path", "transformers_version", "architectures", "use_cache"}


@torch.no_grad()
def fingerprint(model: PreTrainedModel | PeftModel) -> str:
    """Return a digest of a model's config, weights and adapters, names and order included.

    Each weight is read once, about 1 GB a second on each core.
    """
    config = {k: v for k, v in model.config.to_dict().items() if k not in NOT_COMPUTED}
    digest = blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=16)
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            digest.update(f"{name} {sorted(module.scaling.items())}".encode())
    weights = dict(chain(model.named_parameters(), model.named_buffers()))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for name, content in zip(weights, pool.map(_content, weights.values()), strict=True):
            weight = weights[name]
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + content)
    return digest.hexdigest()


def _content(weight: Tensor) -> bytes:
    numbers = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return blake2b(numbers.numpy().data, digest_size=16).digest()
