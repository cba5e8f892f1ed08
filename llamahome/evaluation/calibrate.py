"""Which KV heads retrieve, and a pattern that lets them keep everything.

A few heads do the retrieving (Wu et al. 2024, "Retrieval Head Mechanistically Explains Long-Context
Factuality", arXiv 2404.15574): while a model repeats something from far back, they look at it.

Axes: L layers, G KV heads, H query heads, N tokens, A queries that answer, D head_dim.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llamahome.attention import HybridAttention, Policy, build_policy
from llamahome.config import ConfigError, PolicyConfig

# Not the wording of the needles that evaluation asks for.
TEAMS = ("red", "blue", "green", "amber", "violet", "silver", "crimson", "golden", "indigo")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A text that says a code and, at its end, repeats it.

    Attributes:
        ids: (N,).
        told: positions of the code where it is told.
        answering: positions whose next token is of the code, at the end.
    """

    ids: Tensor
    told: slice
    answering: slice


def probes(
    tokenizer: PreTrainedTokenizerFast, text: str, *, length: int, count: int, seed: int
) -> list[Probe]:
    """Probes of about `length` tokens, the code at a random depth of a random piece of `text`."""
    haystack = _encode(tokenizer, text)
    made = []
    for number in range(count):
        draw = random.Random(f"{seed}:probe:{number}")
        team, code = draw.choice(TEAMS), str(draw.randrange(100_000, 1_000_000))
        told = _encode(tokenizer, f"\n\nThe access code of the {team} team is {code}")
        asked = _encode(
            tokenizer, f".\n\nQuestion: what is the access code of the {team} team?\nAnswer: {code}"
        )
        digits = len(_encode(tokenizer, code))
        room = length - len(told) - len(asked)
        if not 0 < room < len(haystack):
            raise ConfigError(
                f"--context={length}: a probe needs {length - room} tokens and a text that is "
                f"longer (this one has {len(haystack)})"
            )
        start, at = draw.randrange(len(haystack) - room), draw.randrange(room // 2 + 1)
        piece = haystack[start : start + room]
        ids = [*piece[:at], *told, *piece[at:], *asked]
        end = at + len(told)
        made.append(
            Probe(
                ids=torch.tensor(ids),
                told=slice(end - digits, end),
                answering=slice(len(ids) - digits - 1, len(ids) - 1),
            )
        )
    return made


class _Watch:
    """Dense attention that notes how much of it goes from the answer to what was told."""

    def __init__(self, probe: Probe) -> None:
        self.policy: Policy = build_policy(PolicyConfig(name="full", budget=None))
        self.probe = probe
        self.scores: list[Tensor] = []  # per layer: (G,)

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        self.scores.append(self._score(query, key, scaling))
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    def _score(self, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        answering = self.probe.answering
        grouped = query[0].unflatten(0, (key.shape[1], -1))[:, :, answering]  # (G, R, A, D)
        logits = torch.einsum("grad,gnd->gran", grouped, key[0]).float() * scaling
        places = torch.arange(key.shape[2], device=key.device)
        later = places > places[answering][:, None]
        probs = logits.masked_fill(later, float("-inf")).softmax(dim=-1)
        # The best head of a group decides: its keys serve all of them.
        return probs[..., self.probe.told].sum(dim=-1).mean(dim=-1).amax(dim=1)


@torch.inference_mode()
def retrieval_scores(
    model: PreTrainedModel, asked: list[Probe], on_probe: Callable[[], None] = lambda: None
) -> Tensor:
    """How much of its attention a KV head gives to what is being repeated, 0 to 1: (L, G)."""
    HybridAttention.attach(model)
    totals = []
    for probe in asked:
        watch = _Watch(probe)
        model(
            input_ids=probe.ids[None].to(model.device),
            use_cache=False,
            logits_to_keep=1,
            hybrid=watch,
        )
        totals.append(torch.stack(watch.scores).cpu())
        on_probe()
    return torch.stack(totals).mean(dim=0)


class _Curves:
    """Dense attention that notes how much of it the best keys of each head take."""

    def __init__(self, sink: int, recent: int) -> None:
        self.policy: Policy = build_policy(PolicyConfig(name="full", budget=None))
        self.sink, self.recent = sink, recent
        self.curves: list[Tensor] = []  # per layer: (G, N)

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        grouped = query[0].unflatten(0, (key.shape[1], -1))  # (G, R, N, D)
        heads = zip(grouped, key[0], strict=True)
        self.curves.append(torch.stack([self._curve(q, k, scaling) for q, k in heads]))
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    def _curve(self, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        """Mass of a query's best key beyond sinks and recent ones, of its second best, ...: (N,).

        Args:
            query: (R, N, D), of which the later half asks.
            key: (N, D).
        """
        places = torch.arange(key.shape[0], device=key.device)
        asking = places[len(places) // 2 :, None]
        logits = (query[:, len(places) // 2 :] @ key.T).float() * scaling
        mass = logits.masked_fill(places > asking, float("-inf")).softmax(dim=-1).sum(dim=0)
        protected = (places < self.sink) | (places > asking - self.recent)
        return mass.masked_fill(protected, 0).sort(dim=-1, descending=True).values.mean(dim=0)


@torch.inference_mode()
def mass_curves(
    model: PreTrainedModel,
    windows: Tensor,
    *,
    sink: int,
    recent: int,
    on_window: Callable[[], None] = lambda: None,
) -> Tensor:
    """The mass that a KV head's k best keys take beyond sinks and recent ones, by k: (L, G, N).

    Args:
        windows: (W, N) token ids of real text; each starts from nothing.
    """
    HybridAttention.attach(model)
    total = torch.zeros(())
    for ids in windows:
        curves = _Curves(sink, recent)
        model(
            input_ids=ids[None].to(model.device), use_cache=False, logits_to_keep=1, hybrid=curves
        )
        total = total + torch.stack(curves.curves).cpu()
        on_window()
    return total / len(windows)


def share_by_mass(curves: Tensor, base: PolicyConfig, *, total: int) -> PolicyConfig:
    """A policy whose heads share `total` entries a head by the mass they would lose with fewer.

    AdaKV (Feng et al. 2024, arXiv 2407.11550, section 3), with shares that are measured once, over
    all heads of the model, so that every slot has the same shape.

    Args:
        curves: (L, G, N) of `mass_curves` with `base`'s sinks and a quarter of `total` as recent.
        total: entries per KV head on average; a quarter of it is recent in every head.
    """
    recent = max(1, total // 4)
    free = total - base.sink - recent
    heads = curves.flatten(0, 1)
    # Every head keeps a fifth of an even share, the paper's safeguard.
    least = free // 5
    best = heads[:, least:].flatten().topk(heads.shape[0] * (free - least)).indices
    counts = torch.bincount(best // (heads.shape[1] - least), minlength=len(heads)) + least
    # In steps of 16: heads of a layer with equal budgets are attended to together.
    budgets = base.sink + recent + counts // 16 * 16
    groups = curves.shape[1]
    return replace(
        base,
        budget=total,
        recent=recent,
        interval=min(base.interval, recent),
        pattern={f"L{n // groups}H{n % groups}": int(b) for n, b in enumerate(budgets)},
    )


def propose(
    scores: Tensor, base: PolicyConfig, *, total: int, context: int, full_heads: int | None = None
) -> PolicyConfig:
    """A policy whose best heads keep everything and whose others share what is left.

    Args:
        scores: (L, G).
        base: everything else about the policy; half of what the others keep is recent.
        total: entries per KV head, on average over all heads, in a context of `context` tokens.
        full_heads: that keep everything; None takes as many as leave the others a quarter of the
            average.

    Raises:
        ConfigError: when that leaves the others too little.
    """
    heads = scores.numel()
    if full_heads is None:
        full_heads = int(heads * 0.75 * total / (context - total / 4))
    rest = (total * heads - full_heads * context) // max(1, heads - full_heads)
    least = base.sink + 2
    if not (0 <= full_heads < heads and rest >= least):
        raise ConfigError(
            f"--full-heads={full_heads}: at {total} entries a head of {context}, they leave the "
            f"other {heads - full_heads} heads {rest} entries, of which sinks and recent ones "
            f"take {least}; ask for fewer, or raise --budget"
        )
    best = scores.flatten().argsort(descending=True)[:full_heads].tolist()
    groups = scores.shape[1]
    names = sorted((head // groups, head % groups) for head in best)
    recent = max(1, min(rest // 2, rest - base.sink))
    return replace(
        base,
        budget=rest,
        recent=recent,
        interval=min(base.interval, recent),
        pattern={f"L{layer}H{head}": None for layer, head in names},
    )


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return cast(list[int], tokenizer.encode(text, add_special_tokens=False, verbose=False))
