"""Cross-entropy: the log-probability of each labelled token, under the policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llamahome.attention import HybridAttention
from train.data import Batch
from train.objectives.chunked_head import ChunkedHead, at_labels, label_tokens, summed
from train.objectives.label_loss import label_loss


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with each label, or with a mixture of the label and the uniform distribution.

    Attributes:
        label_smoothing: share of the latter (Szegedy et al. 2016, arXiv 1512.00567, section 7).
    """

    label_smoothing: float = 0.0

    def __call__(
        self, engine: Callable[..., Any], batch: Batch, attention: HybridAttention
    ) -> dict[str, Tensor]:
        """Return `loss`, and with label smoothing the plain `ce`, summed over labels of `batch`."""
        targets = label_tokens(batch)

        def sums(states: Tensor, head: ChunkedHead) -> list[Tensor]:
            return summed(
                head.over(
                    states,
                    lambda logits, part: label_loss(
                        logits, targets[part], label_smoothing=self.label_smoothing
                    ),
                )
            )

        loss, ce, _ = at_labels(engine, batch, attention, sums)
        return {"loss": loss, "ce": ce} if self.label_smoothing else {"loss": loss}


cross_entropy = CrossEntropy()
