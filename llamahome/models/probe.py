"""A short comparison of a loaded model with transformers' own forward."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from llamahome.attention import HybridAttention, build_policy
from llamahome.attention.hybrid import NAME
from llamahome.cache import Slots, SlotStep
from llamahome.config import ConfigError, PolicyConfig
from llamahome.models.errors import ModelError, one_line
from llamahome.models.head import output_logits

LAYER_TYPES = {"full_attention", "sliding_attention", "attention", "sparse", "dense"}
STEPS = (5, 4, 1)  # tokens; a state that is not in the cache is lost between two steps
# Mean difference of log-probabilities (nats) that rounding alone stays below.
LIMITS = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
# Each class of transformers fails in its own way.
FAILURES = (
    ArithmeticError,
    AttributeError,
    ConfigError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
CURE = "use a model like Llama, SmolLM2, Mistral, Qwen2 or Qwen3"


def check_layers(config: PreTrainedConfig, folder: Path) -> None:
    """Refuse what is more than a text decoder with keys and values, before it is loaded.

    Raises:
        ModelError: for a model with other inputs, or with layers that keep a state.
    """
    if config.get_text_config(decoder=True) is not config:
        raise ModelError(
            f"{folder / 'config.json'}: model_type={config.model_type!r} is a text decoder among "
            f"other parts; save the decoder alone, or {CURE}"
        )
    kinds = set(getattr(config, "layer_types", None) or ()) - LAYER_TYPES
    if kinds:
        raise ModelError(
            f"{folder / 'config.json'}: layer_types has {', '.join(sorted(kinds))}, which keep "
            f"a state next to keys and values; {CURE}"
        )


@torch.no_grad()
def check_outputs(model: PreTrainedModel, folder: Path) -> None:
    """Compare log-probabilities through slots, in steps, with transformers' own for a few tokens.

    The classes of transformers that go through its attention interface also scale logits, share
    keys between layers, look ahead or cap attention. A model whose way is not followed exactly
    must not answer with other numbers.

    Raises:
        ModelError: where the two differ by more than rounding, or one cannot be computed.
    """
    ids = torch.arange(3, 3 + sum(STEPS), device=model.device)[None] % model.config.vocab_size
    own = model.config._attn_implementation
    try:
        # Masks of other implementations leave out what these tokens are too few for.
        model.set_attn_implementation("eager")
        reference = model(ids, use_cache=False).logits[0]
        HybridAttention.attach(model)
        logits = _in_steps(model, ids)
    except FAILURES as error:
        raise ModelError(
            f"{folder}: model_type={model.config.model_type!r} does not run under a policy "
            f"({one_line(error)}); {CURE}"
        ) from error
    finally:
        if own != NAME:
            model.set_attn_implementation(own)
    gap = (_logprobs(logits) - _logprobs(reference)).abs().mean().item()
    if not gap <= LIMITS[model.dtype]:
        raise ModelError(
            f"{folder}: model_type={model.config.model_type!r} computes what this version does "
            f"not (log-probabilities are off by {gap:.2g} nats); {CURE}"
        )


def _in_steps(model: PreTrainedModel, ids: Tensor) -> Tensor:
    policy = build_policy(PolicyConfig(name="full", budget=None), model)
    slots = Slots(model, policy, num_slots=1, max_length=ids.shape[1])
    logits = []
    for tokens in ids.split(STEPS, dim=1):
        plan = slots.plan([0], [tokens.shape[1]])
        step = SlotStep(slots, plan)
        hidden = model.base_model(
            input_ids=tokens, position_ids=step.position_ids, use_cache=False, hybrid=step
        ).last_hidden_state
        slots.commit(plan)
        logits.append(output_logits(model, hidden[0]))
    return torch.cat(logits)


def _logprobs(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1)
