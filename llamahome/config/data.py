"""Training data."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from llamahome.config.checks import at_least, one_of, require
from llamahome.config.fixed import free

FORMATS = (
    *("auto", "chat", "sharegpt", "alpaca", "completion", "preference"),
    *("text", "tokens", "custom"),
)
TRAIN_ON = ("assistant", "last", "all")
BATCHING = ("packing", "padding")
OVERLONG = ("cut", "split", "drop")


@dataclass(kw_only=True)
class DataConfig:
    """Training data and how it becomes batches.

    Attributes:
        format: what a record holds; `auto` follows from its keys, and .txt files are plain texts.
            `chat`: messages of role and content, with tool_calls, tools, train or weight (0 or 1);
            `sharegpt`: conversations of from and value; `alpaca`: instruction, input, output;
            `completion`: prompt and completion, two texts or two lists of messages;
            `preference`: chosen and rejected, the same, for trainer.objective=dpo and orpo; `text`:
            text of a document, or a plain text; every token is learned; `tokens`: input_ids, and
            labels if not all are learned; `custom`: a Python file in llama-recipes' convention.
        train_file: records, relative to the working directory or else to the repository: a file
            of JSON lines, JSON, Parquet or plain text (.gz too), a folder of such, a pattern like
            "chats/*.jsonl", a URL of one of these that fsspec opens (https://, s3://), a folder of
            `datasets.save_to_disk` or a hub id, the last two with ":split" after them; for
            `custom` "file.py" or "file.py:function".
        mix: further sources, each like train_file.
        mix_times: for each source of `mix` how often a pass takes its records: 2 takes each twice;
            0.5 takes a half of them, which `trainer.seed` draws once for the run.
        eval_file: held-out records; None holds out `eval_fraction` of train_file and of each of
            `mix` (the end of a text) or, for `custom`, asks train_file for its "validation" split.
        eval_fraction: share of train_file held out without an eval_file.
        context_length: tokens in one training sequence; of a pair, in each answer with its prompt.
        batching: `packing` joins whole records up to context_length, and attention keeps them
            apart; `padding` gives each a row, and batches records of similar length.
        overlong: for records of more than context_length tokens: `cut` keeps the beginning,
            `split` makes records of the pieces, `drop` leaves them out.
        train_on: tokens that are learned in a chat: `assistant`, all its turns; `last`, its last
            turn; `all`, the whole chat. A message's `train` or `weight` goes before this.
        max_bad_records: records that may be skipped because they cannot be used; each is listed.
        limit: take only the first records of each file, or rows of a text; None takes all.
        cache_dir: folder of tokenised records, which workers map into memory; None takes `tokens`
            in the cache directory.
        cache_bytes: limit for that folder; what was not used for the longest time is removed, but
            never what a run has just made.
    """

    format: str = "auto"
    train_file: str = "datasets/wordnet_train.jsonl"
    mix: list[str] = field(default_factory=list)
    mix_times: list[float] = field(default_factory=list)
    eval_file: str | None = None
    eval_fraction: float = 0.05
    context_length: int = 1024
    batching: str = "packing"
    overlong: str = "cut"
    train_on: str = "assistant"
    max_bad_records: int = 0
    limit: int | None = None
    cache_dir: str | None = free(None)
    cache_bytes: int = free(64 * 2**30)

    def __post_init__(self) -> None:
        one_of("data.format", self.format, FORMATS)
        one_of("data.batching", self.batching, BATCHING)
        one_of("data.overlong", self.overlong, OVERLONG)
        one_of("data.train_on", self.train_on, TRAIN_ON)
        at_least("data.max_bad_records", self.max_bad_records, 0)
        require(bool(self.train_file), "data.train_file", self.train_file, "name a file of records")
        require(all(self.mix), "data.mix", self.mix, "name a file of records in each entry")
        require(
            len(self.mix_times) == len(self.mix) and all(0 < n < inf for n in self.mix_times),
            "data.mix_times",
            self.mix_times,
            f"give a number above 0 for each of the {len(self.mix)} sources in data.mix",
        )
        at_least("data.context_length", self.context_length, 2)
        require(
            0 < self.eval_fraction < 1,
            "data.eval_fraction",
            self.eval_fraction,
            "it must lie between 0 and 1",
        )
        if self.limit is not None:
            at_least("data.limit", self.limit, 2)
        at_least("data.cache_bytes", self.cache_bytes, 0)
