"""8-bit linear layers in torch, for CPUs where the C++ kernels cannot be built."""

from __future__ import annotations

import copy
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel


class Int8Linear(nn.Module):
    """A linear layer with weights in 8 bits, by output channel, and activations in 8, by token.

    Sums are whole numbers, so a token's output does not depend on the rest of the batch, and one
    that is not finite affects no other.
    """

    _weight: Tensor
    _scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        quantized, scales = _quantize(weight)
        bias = cast(Tensor | None, linear.bias)
        self.register_buffer("_weight", quantized.t().contiguous(), persistent=False)
        self.register_buffer("_scales", scales.t(), persistent=False)
        self._bias = None if bias is None else bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N), of the same dtype."""
        quantized, scales = _quantize(x.flatten(0, -2).float())
        # Private, but torchao's int8 layers are built on it; oneDNN computes it.
        out = torch._int_mm(quantized, self._weight) * scales * self._scales
        if self._bias is not None:
            out += self._bias
        return cast(Tensor, out.unflatten(0, x.shape[:-1]).to(x.dtype))


def _quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Round to int8 (M, K), and return float32 scales (M, 1), which keep NaN and infinity."""
    scales = rows.abs().amax(1, keepdim=True) / 127
    scaled = rows / scales.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.nan_to_num(scaled, nan=0.0, posinf=0.0, neginf=0.0).round_().to(torch.int8), scales


def with_int8_linears(model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
    """Copy a model, or PEFT's model of it, with its own linear layers in 8 bits.

    The copy shares everything else, adapters included, with the original.
    """
    memo: dict[int, object] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    for name, module in model.named_modules():
        if type(module) is nn.Linear and "lora_" not in name:
            memo[id(module)] = Int8Linear(module)
    return copy.deepcopy(model, memo)
