"""Linear maps in 4 bits: QLoRA's NF4 (Dettmers et al. 2023, arXiv 2305.14314, section 3).

An adapter that was trained on such a base belongs to the weights that 4 bits can hold. Its folder
says so in `base_quantization.json`, and whoever puts it on the base rounds the base first.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llamahome.models.errors import ModelError
from llamahome.models.json_files import read_json

MARK = "base_quantization.json"
NF4 = {"format": 1, "bits": 4, "type": "nf4", "double_quantization": True}
LACKING = "4-bit weights need bitsandbytes, which is not installed; pip install 'llamahome[qlora]'"

# It warns in every process that a faster kernel for inference is not there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def has_bitsandbytes() -> bool:
    return find_spec("bitsandbytes") is not None


def quantize_base(model: PreTrainedModel, compute_dtype: torch.dtype) -> None:
    """Replace each linear map of `model`, but the output layer, by one of 4 bits, in place.

    Weights are NF4 in blocks of 64, whose scales are quantised, too. They have no gradient, and
    products are computed in `compute_dtype`.

    Raises:
        ModelError: without bitsandbytes.
    """
    for name, linear in list(linear_maps(model)):
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, _quantized(linear, compute_dtype))
    setattr(model, "is_loaded_in_4bit", True)  # noqa: B010  # PEFT asks for it


def round_base(model: PreTrainedModel) -> None:
    """Round each linear map of `model`, but the output layer, to what 4 bits hold, in place.

    Raises:
        ModelError: without bitsandbytes.
    """
    for _, linear in linear_maps(model):
        linear.weight.data = rounded(linear.weight.data)


def rounded(weight: Tensor) -> Tensor:
    """Return a weight (out, in) as 4 bits hold it, in its own precision and place.

    Raises:
        ModelError: without bitsandbytes.
    """
    functional = _bitsandbytes().functional
    packed, state = functional.quantize_nf4(weight.contiguous(), compress_statistics=True)
    kept: Tensor = functional.dequantize_nf4(packed, state)
    return kept.to(weight.dtype)


def linear_maps(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear]]:
    """Yield name and module of each linear map but the output layer."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if type(module) is nn.Linear and module is not head:
            yield name, module


def write_mark(folder: Path) -> None:
    """Say in an adapter's folder that its base has 4 bits."""
    (folder / MARK).write_text(json.dumps(NF4, indent=2) + "\n")


def is_on_four_bits(folder: Path) -> bool:
    """Return whether the adapter in `folder` was trained on a base of 4 bits.

    Raises:
        ModelError: for bits of another kind.
    """
    file = folder / MARK
    if not file.is_file():
        return False
    if read_json(file) != NF4:
        raise ModelError(
            f"{file} names a quantisation that this version does not know; use the version of "
            "LlamaHome that exported the adapter"
        )
    return True


def _quantized(linear: nn.Linear, compute_dtype: torch.dtype) -> nn.Module:
    modules = _bitsandbytes().nn
    with torch.device("meta"):
        quantized: nn.Linear = modules.Linear4bit(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            compute_dtype,
            compress_statistics=True,
            quant_type="nf4",
        )
    # Else, once evaluated on a CPU with AVX512-BF16, it would pack its weights for inference, and
    # from then on pass no gradient back.
    setattr(quantized, "support_avx512bf16_for_cpu", False)  # noqa: B010  # not a field of nn.Linear
    quantized.weight = modules.Params4bit(
        linear.weight.data,
        requires_grad=False,
        compress_statistics=True,
        quant_type="nf4",
        module=quantized,
    ).to(linear.weight.device)  # quantises
    quantized.bias = linear.bias
    quantized.train(linear.training)
    return quantized


def _bitsandbytes() -> Any:
    if not has_bitsandbytes():
        raise ModelError(LACKING)
    import bitsandbytes

    return bitsandbytes
