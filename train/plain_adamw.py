"""AdamW for ZeRO stage 0, where DeepSpeed brings no optimiser of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class PlainAdamW(torch.optim.AdamW):
    """AdamW that clips, and leaves out a step whose gradients are not finite, as ZeRO does.

    DeepSpeed's engine reads `overflow` and `_global_grad_norm` from any optimiser that has them.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, max_grad_norm: float, **options: Any
    ) -> None:
        super().__init__(groups, **options)
        self.max_grad_norm = max_grad_norm
        self.overflow = False
        self._global_grad_norm: Tensor | None = None

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update the weights, unless a gradient is not finite."""
        trained = [parameter for group in self.param_groups for parameter in group["params"]]
        self._global_grad_norm = torch.nn.utils.clip_grad_norm_(trained, self.max_grad_norm)
        self.overflow = not bool(torch.isfinite(self._global_grad_norm))
        if not self.overflow:
            super().step(closure)
