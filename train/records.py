"""Records of files, URLs and data sets as rows: tokenised once, held out, mixed and packed."""

from __future__ import annotations

import logging
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from llamahome.config import DataConfig, checkout
from llamahome.data import (
    Array,
    BadRecords,
    DataError,
    Row,
    RowOptions,
    TokenCache,
    TokenTable,
    exists,
    files_of,
    is_hub_id,
    is_url,
    plain_texts,
    read_rows,
)
from train.packing import Rows, Tokens, are_pairs, fit, learns, longest, pack, sizes
from train.recipes import custom_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Datasets:
    """Rows ready to be batched: packed or cut to context_length, each with a label to learn.

    Attributes:
        pairs: they hold pairs of answers, for DPO and ORPO.
    """

    train: Sequence[Row]
    eval: Sequence[Row]
    pairs: bool = False


def resolve_files(data: DataConfig) -> DataConfig:
    """Return the config with absolute files, for workers that run in another directory.

    Raises:
        DataError: names both places, for a file that is neither in the working directory nor in
            the repository.
    """
    resolved = replace(
        data,
        cache_dir=str(TokenCache.of(data.cache_dir, data.cache_bytes).folder),
        train_file=_resolve("train_file", data.train_file, data.format),
        mix=[_resolve("mix", file, data.format) for file in data.mix],
    )
    if data.eval_file is None:
        return resolved
    return replace(resolved, eval_file=_resolve("eval_file", data.eval_file, data.format))


def _resolve(key: str, name: str, format: str) -> str:
    name = name.removeprefix("file://")
    if is_url(name) and format != "custom":
        if name.startswith("memory:"):
            raise DataError(f"data.{key}={name!r} is seen by no worker; give a file")
        files_of(name)
        return name
    path, colon, part = name.rpartition(":") if _has_part(name) else (name, "", "")
    if format == "custom" and not path.endswith(".py"):
        raise DataError(f"data.{key}={name!r} must be file.py or file.py:function")
    places = dict.fromkeys(root / Path(path).expanduser() for root in (Path.cwd(), checkout()))
    found = next((place for place in places if exists(place)), None)
    if found is not None:
        return f"{found.resolve()}{colon}{part}"
    if format != "custom" and is_hub_id(path):
        return name
    tried = " and ".join(map(str, places))
    raise DataError(f"data.{key}={name!r}: no such file; looked at {tried}")


def _has_part(name: str) -> bool:
    """Tell whether a name ends in `:part`, the function of a file or the split of a data set."""
    return ":" in name and not exists(Path(name))


@dataclass(frozen=True, eq=False)
class Records:
    """A part (records, 4) for each training record and each held-out one, in the files' order."""

    tokens: Tokens
    train: Array
    held: Array


def build_datasets(data: DataConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Datasets:
    """Read, encode and pack or cut the training and the held-out rows.

    Tokens stay on disk, in a cache that processes share, and a row is built when it is asked for:
    memory holds some 50 bytes of each record. `seed` orders the records that are packed together
    and picks those held out when there is no eval_file. Held-out rows are packed like the training
    rows, in the file's order, so that they fill the cache as much.

    Raises:
        DataError: for a file, record or row that cannot be used, or when no row is left.
    """
    records = read_records(data, tokenizer, seed, BadRecords(data.max_bad_records))
    return arrange(records, data, seed)


def read_records(
    data: DataConfig, tokenizer: PreTrainedTokenizerBase, seed: int, bad: BadRecords
) -> Records:
    """Tokenise the records of a run, or open what was tokenised before.

    Raises:
        DataError: for a file or a record that cannot be used.
    """
    data = resolve_files(data)
    tokens = Tokens()
    read = partial(_read, data=data, tokenizer=tokenizer, seed=seed, bad=bad, tokens=tokens)
    sources = [read(file) for file in (data.train_file, *data.mix)]
    times = (1.0, *data.mix_times)
    train = [_repeated(own, n, seed) for (own, _), n in zip(sources, times, strict=True)]
    held = [of_source for _, of_source in sources]
    if data.eval_file is not None:
        held = [tokens.add(_table(data.eval_file, "validation", data, tokenizer, bad))]
    return Records(tokens, np.concatenate(train), np.concatenate(held))


def _read(
    file: str,
    *,
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    bad: BadRecords,
    tokens: Tokens,
) -> tuple[Array, Array]:
    """Return a source's records to train on, and those to hold out unless there is an eval_file."""
    records = tokens.add(_table(file, "train", data, tokenizer, bad))
    if data.eval_file is not None:
        return records, records[:0]
    if data.format == "custom":
        return records, tokens.add(_table(file, "validation", data, tokenizer, bad))
    if plain_texts(file, data.format):
        return _without_end(records, file, data)
    is_held = held_out(len(records), data.eval_fraction, seed)
    return records[~is_held], records[is_held]


def held_out(count: int, fraction: float, seed: int) -> Array:
    """Tell which of `count` records to hold out: a share, at least one; the same for one seed.

    Raises:
        DataError: for fewer than two records.
    """
    if count < 2:
        raise DataError(
            f"{count} record cannot be split into training and held-out records; "
            "give more records, or a file of held-out ones"
        )
    size = min(max(1, round(count * fraction)), count - 1)
    is_held = np.zeros(count, dtype=bool)
    is_held[random.Random(seed).sample(range(count), size)] = True
    return is_held


def _table(
    file: str, split: str, data: DataConfig, tokenizer: PreTrainedTokenizerBase, bad: BadRecords
) -> TokenTable:
    """Return a source's rows; only a custom file is asked for a split.

    Its rows come from code that may read anything, so they are made each time.
    """
    if data.format == "custom":
        return TokenTable.of(custom_rows(file, tokenizer, split, data.limit, data.context_length))
    options = RowOptions(data.format, data.train_on, data.context_length, data.limit)
    cache = TokenCache.of(data.cache_dir, data.cache_bytes)
    return read_rows(file, options, tokenizer, bad, cache)


def _repeated(records: Array, times: float, seed: int) -> Array:
    """Return each record `times` times; of a fraction, a random share of them."""
    whole = int(times)
    count = round(len(records) * (times - whole))
    share = random.Random(seed).sample(range(len(records)), count)
    return np.concatenate([*[records] * whole, records[share]])


def _without_end(rows: Array, file: str, data: DataConfig) -> tuple[Array, Array]:
    """Hold out the end of a plain text."""
    held = max(1, round(len(rows) * data.eval_fraction))
    if held >= len(rows):
        raise DataError(
            f"{file}: {len(rows)} rows of data.context_length={data.context_length} "
            "leave nothing to hold out; give a longer text or data.eval_file"
        )
    return rows[:-held], rows[-held:]


def arrange(records: Records, data: DataConfig, seed: int) -> Datasets:
    """Shuffle the training records, and pack or cut both kinds.

    Raises:
        DataError: when no row is left that has a token to learn.
    """
    order = array("q", range(len(records.train)))
    random.Random(seed).shuffle(order)
    train = records.train[np.frombuffer(order, dtype=np.int64)]
    pairs = are_pairs(np.concatenate([train, records.held]))
    if pairs.any() != pairs.all():
        raise DataError(
            "some records are pairs of answers (chosen, rejected) and some are not; "
            "train on them in runs of their own"
        )
    return Datasets(
        train=_arrange(records.tokens, train, data, "training"),
        eval=_arrange(records.tokens, records.held, data, "held-out"),
        pairs=bool(pairs.any()),
    )


def _arrange(tokens: Tokens, records: Array, data: DataConfig, name: str) -> Rows:
    length = data.context_length
    if long := int((longest(records) > length).sum()):
        done = {"cut": "cut to their beginning", "split": "split", "drop": "dropped"}
        logger.warning(
            "%d %s records of more than %d tokens %s (data.overlong=%s)",
            *(long, name, length, done[data.overlong], data.overlong),
        )
    fitting = fit(records, length, data.overlong)
    kept = fitting[learns(fitting, tokens)]
    if len(kept) < len(fitting):
        logger.warning("%d %s records without a label dropped", len(fitting) - len(kept), name)
    if not len(kept):
        raise DataError(
            f"no {name} record has a token to learn within data.context_length="
            f"{data.context_length}; raise it, or give records whose answers come earlier"
        )
    rows = Rows(tokens, kept)
    if data.batching == "packing":
        # A row of pairs has room for the longest of them.
        rows = Rows(tokens, *pack(kept, 2 * length if are_pairs(kept)[0] else length))
    logger.info(
        "%d %s records in %d rows of %d tokens in all",
        *(len(records), name, len(rows), sizes(kept).sum()),
    )
    return rows
