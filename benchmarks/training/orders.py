"""The same work for every program: rows, steps and rate; and what each of them took for it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from llamahome.config import DataConfig, TrainerConfig
from llamahome.models import LoadedModel
from train.data import batches
from train.records import build_datasets

Rows = list[dict[str, list[int]]]


@dataclass(frozen=True, kw_only=True)
class Order:
    """Work for one program.

    Attributes:
        rows: input_ids, attention_mask and labels of each row, in the order of the steps.
    """

    rows: Rows
    steps: int
    batch_size: int
    threads: int
    learning_rate: float = 2e-5

    @property
    def tokens(self) -> int:
        """Tokens of all steps, without padding."""
        return sum(len(row["input_ids"]) for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Figures of one program.

    Attributes:
        seconds, losses: of each step.
        cpu_seconds: of each step, of the process that trains. Other programs on the machine change
            them less than `seconds`.
        others: CPU seconds of each step in other processes of the program, such as Ray's.
        peak_mib: most memory that its process held.
    """

    seconds: list[float]
    cpu_seconds: list[float]
    others: list[float]
    losses: list[float]
    peak_mib: float


def differences(ends: Sequence[float]) -> list[float]:
    """Return what each step took, from the ends of all steps and that of what was before them."""
    return [end - start for start, end in itertools.pairwise(ends)]


def rows_of(data: DataConfig, loaded: LoadedModel, steps: int, batch_size: int) -> Rows:
    """Return the rows that a run with one worker takes in its first steps, in its order."""
    dataset = build_datasets(data, loaded.tokenizer, seed=0).train
    trainer = TrainerConfig(batch_size=batch_size)
    share = {"rank": 0, "world_size": 1, "start_step": 0, "pad_id": loaded.tokenizer.pad_token_id}
    rows: Rows = []
    for batch in islice(batches(dataset, data, trainer, **share), steps):
        for at, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            rows.append(
                {
                    name: batch[name][at, :length].tolist()
                    for name in ("input_ids", "attention_mask", "labels")
                }
            )
    return rows
