"""Records to rows on several cores: this process encodes the first ones, its children the rest.

A child is `python -m llamahome.data`. It is no fork, which would copy threads that hold locks, and
no `multiprocessing` process, which would import the caller's script again.
"""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from transformers import PreTrainedTokenizerBase

from llamahome.config.checkout import PACKAGE
from llamahome.data.encode import Row, RowEncoder
from llamahome.data.errors import BadRecord, DataError
from llamahome.data.records import parse_record
from llamahome.data.sources import Raw
from llamahome.data.table import TokenTable

CHUNK = 128  # records that are encoded together
CHUNKS_BEFORE_CHILDREN = 16  # a child takes a second to start


@dataclass(frozen=True)
class ChunkEncoder:
    """Encodes records of one format."""

    tokenizer: PreTrainedTokenizerBase
    format: str
    train_on: str

    def rows(self, chunk: Iterable[Raw]) -> Chunk:
        """Encode records up to the first that shows that none can be encoded."""
        encoder = RowEncoder(self.tokenizer, self.train_on)
        rows: list[Row] = []
        outcomes: list[str | None] = []
        for where, raw in chunk:
            try:
                if isinstance(raw, BadRecord):
                    raise raw
                rows.append(encoder.encode(parse_record(raw, self.format, where)))
                outcomes.append(None)
            except BadRecord as error:
                outcomes.append(str(error))
            except DataError as error:
                return Chunk(TokenTable.of(rows), outcomes, str(error))
        return Chunk(TokenTable.of(rows), outcomes, None)


@dataclass(frozen=True)
class Chunk:
    """Encoded records.

    Attributes:
        outcomes: for each record None, or why it cannot be used.
        failure: why the record after them, and any other, cannot be encoded.
    """

    table: TokenTable
    outcomes: list[str | None]
    failure: str | None


def encode_records(
    records: Iterator[Raw], encoder: ChunkEncoder, processes: int | None = None
) -> Iterator[Chunk]:
    """Yield encoded records in their order; memory holds a few chunks for each process.

    Args:
        processes: None takes one for each core that this process may use.
    """
    chunks = _chunks(records)
    for chunk in itertools.islice(chunks, CHUNKS_BEFORE_CHILDREN):
        yield encoder.rows(chunk)
    if (following := next(chunks, None)) is None:
        return
    with _Children(encoder, processes or len(os.sched_getaffinity(0))) as children:
        yield from children.encode(itertools.chain([following], chunks))


def _chunks(records: Iterator[Raw]) -> Iterator[list[Raw]]:
    while chunk := list(itertools.islice(records, CHUNK)):
        yield chunk


class _Children:
    """Processes that encode, each fed by a thread of this one."""

    def __init__(self, encoder: ChunkEncoder, count: int) -> None:
        self._encoder, self._count = encoder, count
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._stack = ExitStack()

    def __enter__(self) -> _Children:
        with self._stack:
            for _ in range(self._count):
                child = self._stack.enter_context(_start())
                self._stack.callback(child.kill)
                self._idle.put(child)
                _send(child, self._encoder)
            self._threads = self._stack.enter_context(ThreadPoolExecutor(self._count))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._stack.close()

    def encode(self, chunks: Iterator[list[Raw]]) -> Iterator[Chunk]:
        waiting: deque[Future[Chunk]] = deque()
        for chunk in chunks:
            waiting.append(self._threads.submit(self._encode, chunk))
            if len(waiting) > 2 * self._count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _encode(self, chunk: list[Raw]) -> Chunk:
        child = self._idle.get()
        try:
            _send(child, chunk)
            assert child.stdout is not None
            encoded: Chunk = pickle.load(child.stdout)
        except (EOFError, BrokenPipeError) as error:
            raise DataError(
                f"a process that tokenises ended with exit code {child.wait()}; "
                "its last words are above"
            ) from error
        finally:
            self._idle.put(child)
        return encoded


def _start() -> subprocess.Popen[bytes]:
    roots = [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, roots))}
    environment["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core
    return subprocess.Popen(
        [sys.executable, "-m", "llamahome.data"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        process_group=0,  # Ctrl-C is for the parent, which ends its children
    )


def _send(child: subprocess.Popen[bytes], value: Any) -> None:
    assert child.stdin is not None
    pickle.dump(value, child.stdin, pickle.HIGHEST_PROTOCOL)
    child.stdin.flush()


def serve_chunks() -> None:
    """Encode chunks from standard input until the parent closes it or is gone."""
    replies, sys.stdout = sys.stdout.buffer, sys.stderr
    encoder: ChunkEncoder = pickle.load(sys.stdin.buffer)
    while True:
        try:
            chunk = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(encoder.rows(chunk), replies, pickle.HIGHEST_PROTOCOL)
        replies.flush()
