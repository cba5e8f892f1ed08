"""Parts of llama-recipes, with their pitfalls handled.

Imports are inside the functions: its packages take seconds to import, and few runs need them.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llamahome.data import DataError, Row

KEYS = ("input_ids", "attention_mask", "labels")


@contextlib.contextmanager
def quiet_recipes() -> Iterator[None]:
    """Drop llama_recipes' warning that it is an alias, and keep the process's warning filters.

    Its packages call `warnings.simplefilter("default")` for the whole process when they warn.
    Warnings from any other place are passed on.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if not {"llama_recipes", "llama_cookbook"} & set(Path(warning.filename).parts):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


def custom_rows(
    file: str, tokenizer: PreTrainedTokenizerBase, split: str, limit: int | None, length: int
) -> list[Row]:
    """Read rows from a Python file in the custom-dataset convention.

    The file's `get_custom_dataset(dataset_config, tokenizer, split)`, or the function named after
    a colon, returns rows of input_ids, attention_mask and labels for "train" or "validation".
    Its dataset_config has the most tokens of a row as `context_length`.
    Its optional get_data_collator is not used: batches are padded in `train.data`.

    Raises:
        DataError: when the function is missing or a row is not of that form.
    """
    with quiet_recipes():
        from llama_recipes.configs import train_config
        from llama_recipes.utils.config_utils import generate_dataset_config
        from llama_recipes.utils.dataset_utils import get_preprocessed_dataset
    chosen = train_config()
    chosen.dataset = "custom_dataset"
    config = generate_dataset_config(chosen, {"custom_dataset.file": file})
    config.context_length = length
    function = file.partition(":")[2] or "get_custom_dataset"
    try:
        dataset = get_preprocessed_dataset(tokenizer, config, split)
    except AttributeError as error:
        if error.name != function:  # raised by the user's own code
            raise
        raise DataError(f"{file}: has no function {function}; define it or name another") from error
    rows = itertools.islice(dataset, limit)
    return [_checked(row, f"{file}: {split} row {i}") for i, row in enumerate(rows)]


def _checked(raw: Any, where: str) -> Row:
    missing = [key for key in KEYS if key not in raw]
    if missing:
        raise DataError(f"{where}: {missing[0]} is missing; rows need {', '.join(KEYS)}")
    try:
        columns = {key: torch.as_tensor(raw[key]) for key in KEYS}
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}; give flat lists of integers") from error
    shapes = ", ".join(f"{key} {list(column.shape)}" for key, column in columns.items())
    if any(column.shape != (len(columns["labels"]),) for column in columns.values()):
        raise DataError(f"{where}: {shapes}; the three must be flat and of one length")
    return {key: column.tolist() for key, column in columns.items()}


def groups_by_length(lengths: list[int], size: int) -> list[list[int]]:
    """Return row numbers in groups of `size` rows of similar length, shortest first.

    The sampler only sorts here. Its shuffle, and its distributed form, draw from the global random
    state, which workers do not share and a resumed run does not have. It would leave out the
    longest rows that fill no group, so give it a multiple of `size`.
    """
    with quiet_recipes():
        from llama_recipes.data.sampler import LengthBasedBatchSampler
    rows = [{"input_ids": range(length)} for length in lengths]  # it asks for their length alone
    sampler = LengthBasedBatchSampler(rows, size, drop_last=True, shuffle=False)
    return [[int(i) for i in group] for group in sampler]
