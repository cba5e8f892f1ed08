"""Training of the learned score: regression on the attention that entries have still to expect.

Axes: L layers, G KV heads, H query heads, N tokens, C chunk ends, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu

from llamahome.attention.policies.learned import LearnedScorer
from llamahome.config import PolicyConfig
from llamahome.evaluation.calibration.recording import LayerRecord

EPOCHS = 12
LEARNING_RATE = 3e-3


@dataclass(frozen=True, kw_only=True)
class Example:
    """Lessons of one text.

    Attributes:
        inputs: (L, G, N, 2 D) float16, each entry's unrotated key and its value.
        futures: (L, G, C, N), the attention that an average query gives each entry after each
            chunk's end, summed over its group; in heads that look things up the largest of any
            query instead, since one look is enough. 0 for entries that could not be evicted there.
        old: (C, N), which entries could be.
        log_ages: (C, N), of entries at the chunk's end; 0 for those that are not there yet.
    """

    inputs: Tensor
    futures: Tensor
    old: Tensor
    log_ages: Tensor


@torch.no_grad()
def example(
    layers: Sequence[LayerRecord], scorer: LearnedScorer, policy: PolicyConfig, lookup: Tensor
) -> Example:
    """Turn a recorded text into an example; `lookup` (L, G) are heads that look things up."""
    length = layers[0].key.shape[2]
    ends = torch.arange(policy.interval, length, policy.interval)
    places = torch.arange(length)
    old = (places >= policy.sink) & (places < ends[:, None] - policy.recent)
    positions = places[None].to(layers[0].key.device)
    inputs = [
        torch.cat([scorer.unrotated(record.key[0], positions), record.value[0]], dim=-1)
        for record in layers
    ]
    futures = torch.stack(
        [
            _futures(record, policy.interval, heads)
            for record, heads in zip(layers, lookup, strict=True)
        ]
    )
    return Example(
        inputs=torch.stack(inputs).half().cpu(),
        futures=(futures * old.to(futures.device)).cpu(),
        old=old,
        log_ages=(ends[:, None] - places).clamp_min(1).log(),
    )


def _futures(record: LayerRecord, interval: int, lookup: Tensor) -> Tensor:
    """Return the mean or, where `lookup` (G,), largest attention after each chunk: (G, C, N)."""
    query = record.by_group(record.query)[0]  # (G, R, N, D)
    length, device = query.shape[2], query.device
    peaks = lookup.to(device).view(-1, 1, 1)
    given = torch.zeros(query.shape[0], -(-length // interval), length, device=device)
    for chunk, start in enumerate(range(0, length, interval)):
        rows = slice(start, min(start + interval, length))
        seen = record.key[0, :, : rows.stop].mT.unsqueeze(1)
        logits = query[:, :, rows] @ seen * record.scaling
        later = torch.arange(rows.stop) > torch.arange(rows.start, rows.stop)[:, None]
        probs = logits.masked_fill(later.to(device), float("-inf")).softmax(dim=-1)
        own = torch.where(peaks[..., 0], probs.amax(dim=(1, 2)), probs.sum(dim=(1, 2)))
        given[:, chunk, : rows.stop] = own
    backwards = given.flip(1)
    left = length - torch.arange(interval, length, interval, device=device)
    mean = backwards.cumsum(dim=1).flip(1)[:, 1:] / left[:, None]
    return torch.where(peaks, backwards.cummax(dim=1).values.flip(1)[:, 1:], mean)


def fit(
    scorer: LearnedScorer,
    examples: Sequence[Example],
    *,
    epochs: int = EPOCHS,
    on_epoch: Callable[[float], None] = lambda loss: None,
) -> None:
    """Train a new scorer's weights, in place.

    Minimises the Tweedie deviance of power 1.5 (Jorgensen 1987, "Exponential Dispersion Models"),
    which suits amounts that are mostly near 0 and rarely large; a head's examples are divided by
    their mean, so that all heads learn at the same pace.
    """
    mean = _mean_future(examples)
    centre, spread = _moments(examples)
    with torch.no_grad():  # begin at the right height, which would take many steps
        scorer.bias.fill_(torch.cat([own.log_ages[own.old] for own in examples]).mean())
    optimizer = torch.optim.Adam(scorer.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(examples))
    for _ in range(epochs):
        total = 0.0
        for own in examples:
            inputs = (own.inputs.float() - centre) / spread
            loss = _deviance(_expected(scorer, inputs, own.log_ages), own.futures / mean, own.old)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        on_epoch(total / len(examples))
    _unstandardise(scorer, centre, spread)


def _mean_future(examples: Sequence[Example]) -> Tensor:
    """Return each head's mean future, (L, G, 1, 1)."""
    entries = sum(int(own.old.sum()) for own in examples)
    totals = torch.stack([own.futures.sum(dim=(2, 3), keepdim=True) for own in examples])
    return totals.sum(dim=0).div(entries).clamp_min(torch.finfo(torch.float32).tiny)


def _moments(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each input of each head: (L, G, 1, 2 D)."""
    inputs = torch.cat([own.inputs for own in examples], dim=2).float()
    return inputs.mean(dim=2, keepdim=True), inputs.std(dim=2, keepdim=True).clamp_min(1e-6)


def _expected(scorer: LearnedScorer, inputs: Tensor, log_ages: Tensor) -> Tensor:
    """Return the logarithm of the future that the scorer expects: (L, G, C, N)."""
    size = inputs.shape[:2]
    x = inputs.flatten(0, 1)
    hidden = torch.baddbmm(
        scorer.hidden_bias.flatten(0, 1).unsqueeze(1), x, scorer.hidden.flatten(0, 1).mT
    )
    features = x @ scorer.linear.flatten(0, 1).unsqueeze(-1)
    features = features + silu(hidden) @ scorer.out.flatten(0, 1).unsqueeze(-1)
    features = features.squeeze(-1).unflatten(0, size) + scorer.bias.unsqueeze(-1)
    expected: Tensor = features.unsqueeze(2) - scorer.discount[..., None, None] * log_ages
    return expected


def _deviance(log_mean: Tensor, target: Tensor, old: Tensor) -> Tensor:
    """Return the mean Tweedie deviance of power 1.5, less what depends on the target alone."""
    half = (log_mean / 2).exp()
    total: Tensor = (2 * (target / half + half) * old).sum()
    return total / (int(old.sum()) * target.shape[:2].numel())


@torch.no_grad()
def _unstandardise(scorer: LearnedScorer, centre: Tensor, spread: Tensor) -> None:
    """Make the weights read inputs as they are: (x - centre) / spread becomes part of them."""
    scorer.hidden.div_(spread)
    scorer.hidden_bias.sub_((scorer.hidden * centre).sum(dim=-1))
    scorer.linear.div_(spread.squeeze(2))
    scorer.bias.sub_((scorer.linear * centre.squeeze(2)).sum(dim=-1))
