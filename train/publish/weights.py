"""Weights with adapters merged in, or the adapter alone, compared before they count."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from llamahome.attention import Policy
from llamahome.models import write_adapter_policy, write_policy_weights
from llamahome.models.adapter_chain import ADAPTER_CONFIG
from llamahome.models.adapters import ADAPTER_WEIGHTS, load_adapter
from llamahome.models.four_bits import is_on_four_bits, write_mark
from llamahome.models.json_files import read_json
from llamahome.models.pretrained import load_pretrained
from llamahome.models.probe import LIMITS
from train.errors import ExportError
from train.publish.news import say
from train.publish.source import Source

SAMPLES = (2, 48)  # sequences and tokens on which two models are compared
CPU = torch.device("cpu")


def merged_model(source: Source) -> tuple[PreTrainedModel, Policy | None, Tensor]:
    """Load the model in float32, adapters merged, with its policy and its log-probabilities.

    Returns:
        The log-probabilities (2, 48, V) are those of the model with its adapter attached.

    Raises:
        ExportError: when merging changes what the model computes.
    """
    say(f"reading {source.name} in float32")
    expected = None if source.adapter is None else _unmerged(source)
    model = source.found.pretrained(CPU)
    policy = source.found.policy(model)
    merged = log_probs(model)
    if expected is not None:
        check_gap(merged, expected, torch.float32, "the merged model", "the one with its adapter")
    return model, policy, merged if expected is None else expected


def write_merged(source: Source, dtype: str, folder: Path) -> float:
    """Write the model as a Hugging Face folder and return what rounding costs, in nats.

    Raises:
        ExportError: when transformers, reading the folder, computes something else.
    """
    model, policy, expected = merged_model(source)
    kept = getattr(torch, dtype)
    model.to(kept).save_pretrained(folder)
    if policy is not None and policy.weights is not None:
        write_policy_weights(folder, policy.weights.state_dict())
    source.found.tokenizer().save_pretrained(folder)
    del model
    say(f"wrote weights in {dtype}; reading them back")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=kept, local_files_only=True)
    return check_gap(log_probs(plain), expected, kept, "the folder", "the trained model")


def write_adapter(source: Source, base_id: str, folder: Path) -> float:
    """Write the adapter as a PEFT folder on the base `base_id`; return 0.0, as nothing rounds.

    Raises:
        ExportError: when PEFT, reading the folder, computes something else.
    """
    adapter = source.adapter
    assert adapter is not None
    config = {**read_json(adapter / ADAPTER_CONFIG), "base_model_name_or_path": base_id}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    shutil.copyfile(adapter / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    if is_on_four_bits(adapter):
        write_mark(folder)
    source.found.tokenizer().save_pretrained(folder)
    model, policy, expected = merged_model(source)
    if policy is not None:
        write_adapter_policy(folder, policy.config)
        if policy.weights is not None:
            write_policy_weights(folder, policy.weights.state_dict())
    del model
    say("wrote the adapter; reading it back")
    base = load_pretrained(source.found.chain[1:], torch.float32, CPU)
    plain = load_adapter(base, folder).eval()
    return check_gap(log_probs(plain), expected, torch.float32, "the folder", "the trained model")


@torch.no_grad()
def log_probs(model: Callable[..., Any]) -> Tensor:
    """Return log-probabilities (2, 48, V) in float32 of tokens drawn with a fixed seed."""
    vocabulary = cast(Any, model).config.vocab_size
    ids = torch.randint(vocabulary, SAMPLES, generator=torch.Generator().manual_seed(0))
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float().log_softmax(-1)


def check_gap(ours: Tensor, expected: Tensor, dtype: torch.dtype, what: str, other: str) -> float:
    """Return the mean difference of log-probabilities, in nats.

    Raises:
        ExportError: when it is more than rounding to `dtype` explains.
    """
    gap = float((ours - expected).abs().mean())
    if not gap <= LIMITS[dtype]:  # nor is nan
        raise ExportError(
            f"{what} predicts something else than {other} (log-probabilities are off by "
            f"{gap:.2g} nats), so nothing was exported; try --dtype float32, or give the adapter's "
            "own base"
        )
    return gap


def _unmerged(source: Source) -> Tensor:
    base = load_pretrained(source.found.chain[1:], torch.float32, CPU)
    return log_probs(load_adapter(base, source.found.chain[0]).eval())
