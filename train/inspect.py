"""`python -m train.inspect [file] [key=value ...]`: show the rows that a run would train on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from llamahome.config import ConfigError, DataConfig, TrainRoot
from llamahome.data import IGNORED, Array, BadRecords, DataError, Row
from llamahome.logs import configure_logging
from llamahome.models import ModelError, ModelManager
from train.compose import compose_root
from train.packing import Tokens, fit, learns, longest, row_lengths, sizes
from train.progress import plain_console
from train.records import Datasets, Records, arrange, read_records
from train.run import load_tokenizer

SHOWN_ROWS = 3
RUN_CHARACTERS = 600  # shown of each run of learned or other tokens, half from its beginning
ROW_CHARACTERS = 2000
HELP = """llamahome data inspect [FILE] [group=option] [group.key=value]
Show records, lengths, and rows with the learned tokens marked, as a worker of the run sees them.
FILE is data.train_file, with a part of it held out unless data.eval_file is given."""


def main() -> None:
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        plain_console().print(HELP)
        return
    try:
        inspect(_root(arguments), ModelManager(), Console(highlight=False))
    except (ConfigError, DataError, ModelError) as error:
        plain_console(stderr=True).print(f"error: {error}")
        sys.exit(2)


def inspect(root: TrainRoot, manager: ModelManager, console: Console) -> None:
    """Print what `root` would train on.

    Raises:
        DataError: for data that a run would refuse.
        ModelError: for a model whose tokenizer cannot be used.
    """
    tokenizer = load_tokenizer(manager.resolve(root.model.name, root.model.revision), manager)
    bad = BadRecords(root.data.max_bad_records)
    records = read_records(root.data, tokenizer, root.trainer.seed, bad)
    built = arrange(records, root.data, root.trainer.seed)
    console.print(_table(records, built, root.data))
    for reason in bad.reasons:
        console.print(f"skipped: {reason}", style="red", markup=False, soft_wrap=True)
    for number, row in enumerate(built.train[:SHOWN_ROWS]):
        console.rule(f"training row {number}: {len(row['input_ids'])} tokens", align="left")
        console.print(marked(row, tokenizer, in_colour=console.is_terminal), soft_wrap=True)


def marked(row: Row, tokenizer: PreTrainedTokenizerBase, *, in_colour: bool) -> Text:
    """Return a row's text with its learned tokens in green, or else in brackets ⟦ ⟧."""
    text = Text()
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    for is_learned, run in groupby(pairs, key=lambda pair: pair[1] != IGNORED):
        said = _shortened(str(tokenizer.decode([token for token, _ in run])))
        if is_learned:
            text.append(said if in_colour else f"⟦{said}⟧", style="bold green")
        else:
            text.append(said, style="dim")
    left_out = len(text) - ROW_CHARACTERS
    return text if left_out <= 0 else text[:ROW_CHARACTERS] + f" … {left_out:,} characters"


def _root(arguments: Sequence[str]) -> TrainRoot:
    """Compose the config of a run; an argument without `=` is the training file."""
    overrides = [argument for argument in arguments if "=" in argument]
    files = [argument for argument in arguments if "=" not in argument]
    if len(files) > 1:
        raise ConfigError(f"{files[1]!r}: one file at a time; give a folder or a pattern in quotes")
    return compose_root(overrides, *files)


def _table(records: Records, built: Datasets, data: DataConfig) -> Table:
    sources = ", ".join((data.train_file, *data.mix))
    table = Table(title=f"{sources}; data.format={data.format}")
    table.add_column("")
    table.add_column("training", justify="right")
    table.add_column("held out", justify="right")
    both = [
        _figures(records.tokens, records.train, built.train, data),
        _figures(records.tokens, records.held, built.eval, data),
    ]
    for name in both[0]:
        table.add_row(name, *(figures[name] for figures in both))
    return table


def _figures(
    tokens: Tokens, records: Array, rows: Sequence[Row], data: DataConfig
) -> dict[str, str]:
    lengths = sorted(sizes(records).tolist())
    kept = sum(row_lengths(rows))
    learned = sum(_learned(row["labels"]) for row in rows)
    length = data.context_length
    return {
        "records": f"{len(records):,}",
        "tokens of a record: median": f"{_percentile(lengths, 50):,}",
        "90th percentile": f"{_percentile(lengths, 90):,}",
        "99th percentile": f"{_percentile(lengths, 99):,}",
        "longest": f"{lengths[-1]:,}",
        f"longer than {length:,} tokens": f"{(longest(records) > length).sum():,}",
        f"nothing to learn in the first {length:,}": f"{_unlearned(tokens, records, length):,}",
        f"rows after {data.batching}": f"{len(rows):,}",
        "their tokens": f"{kept:,}",
        "tokens left out": f"{sum(lengths) - kept:,}",
        "learned tokens": f"{learned:,} ({learned / kept:.0%})",
    }


def _percentile(ordered: list[int], percent: int) -> int:
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]


def _unlearned(tokens: Tokens, records: Array, length: int) -> int:
    return int((~learns(fit(records, length, "cut"), tokens)).sum())


def _learned(labels: list[int]) -> int:
    return sum(label != IGNORED for label in labels)


def _shortened(text: str) -> str:
    """Leave the middle of a long text out."""
    left_out = len(text) - RUN_CHARACTERS
    if left_out <= 0:
        return text
    half = RUN_CHARACTERS // 2
    return f"{text[:half]} … {left_out:,} characters … {text[-half:]}"


if __name__ == "__main__":
    configure_logging("ERROR")  # the tables show what the warnings say
    main()
