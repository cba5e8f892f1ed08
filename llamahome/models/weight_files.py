"""The safetensors files of a model's folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from llamahome.models.errors import ModelCorruptError, ModelError
from llamahome.models.json_files import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# safetensors' name -> torch's name, bytes per element.
DTYPES = {"F32": ("float32", 4), "BF16": ("bfloat16", 2), "F16": ("float16", 2)}


def weight_files(folder: Path) -> list[Path]:
    """List the files that hold a model's weights, as transformers finds them.

    Raises:
        ModelError: for a folder without safetensors.
        ModelCorruptError: for an index that is lost or broken, or a file that it names.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        if any(folder.glob("model*.safetensors")):
            raise ModelCorruptError(f"{index}, which says what is where, is lost; get it again")
        raise ModelError(
            f"{folder} has no model*.safetensors; other weights (*.bin, *.pt) are pickles, which "
            "can run code, and are never loaded"
        )
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelCorruptError(f"{index} has no weight_map; get it again")
    files = [folder / str(name) for name in sorted(set(map(str, places.values())))]
    for file in files:
        if not file.is_file() or file.parent != folder:
            raise ModelCorruptError(f"{file}, which {INDEX} names, is missing; get it again")
    return files


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Open a safetensors file; a damaged one is a `ModelCorruptError`."""
    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ModelCorruptError(f"{file} is damaged ({error}); get it again") from error


def count_weights(folder: Path) -> Counter[str]:
    """Count floating-point weights by dtype; a few checkpoints also store masks and positions."""
    counts = Counter[str]()
    for file in weight_files(folder):
        with opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118  # it has no iterator of its own
                tensor = tensors.get_slice(name)
                counts[tensor.get_dtype()] += prod(tensor.get_shape())
    floating = Counter({dtype: count for dtype, count in counts.items() if dtype in DTYPES})
    if not floating:
        raise ModelError(
            f"{folder} has weights of {', '.join(counts) or 'no dtype'}; use a model in one of "
            + ", ".join(name for name, _ in DTYPES.values())
        )
    return floating
