"""Training data."""

from __future__ import annotations

from dataclasses import dataclass

from llamahome.config.checks import at_least, one_of, require

FORMATS = ("chat", "alpaca", "text", "custom")
BATCHING = ("packing", "padding")
OVERLONG = ("cut", "split", "drop")


@dataclass(kw_only=True)
class DataConfig:
    """Training data and how it becomes batches.

    Attributes:
        format: `chat` (JSON lines of {"messages": [...]}), `alpaca` (JSON or JSON lines of
            instruction, input, output), `text` (one plain text, .txt or .txt.gz, whose every
            token is learned) or `custom` (a Python file in llama-recipes' convention).
        train_file: records, relative to the working directory or else to the repository; for
            `custom` "file.py" or "file.py:function".
        eval_file: held-out records; None holds out `eval_fraction` of train_file (the end of a
            text) or, for `custom`, asks train_file for its "validation" split.
        eval_fraction: share of train_file held out without an eval_file.
        context_length: tokens in one training sequence.
        batching: `packing` joins whole records up to context_length, and attention keeps them
            apart; `padding` gives each a row, and batches records of similar length.
        overlong: for records of more than context_length tokens: `cut` keeps the beginning,
            `split` makes records of the pieces, `drop` leaves them out.
        limit: take only the first records of each file, or rows of a text; None takes all.
    """

    format: str = "chat"
    train_file: str = "datasets/wordnet_train.jsonl"
    eval_file: str | None = None
    eval_fraction: float = 0.05
    context_length: int = 1024
    batching: str = "packing"
    overlong: str = "cut"
    limit: int | None = None

    def __post_init__(self) -> None:
        one_of("data.format", self.format, FORMATS)
        one_of("data.batching", self.batching, BATCHING)
        one_of("data.overlong", self.overlong, OVERLONG)
        require(bool(self.train_file), "data.train_file", self.train_file, "name a file of records")
        at_least("data.context_length", self.context_length, 2)
        require(
            0 < self.eval_fraction < 1,
            "data.eval_fraction",
            self.eval_fraction,
            "it must lie between 0 and 1",
        )
        if self.limit is not None:
            at_least("data.limit", self.limit, 2)
