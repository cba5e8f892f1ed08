"""Rows of a source, and the records of it that cannot be used."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

from llamahome.data.encode import Row, RowEncoder
from llamahome.data.errors import BadRecord, DataError
from llamahome.data.records import parse_record
from llamahome.data.sources import raw_records

logger = logging.getLogger(__name__)


class BadRecords:
    """The records that cannot be used, each a line of file, place and reason.

    Args:
        limit: one more raises.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.reasons: list[str] = []

    def skip(self, error: BadRecord) -> None:
        """Count and list a record.

        Raises:
            DataError: when there are more than the limit.
        """
        self.reasons.append(str(error))
        if len(self.reasons) > self._limit:
            skipped = f"; data.max_bad_records={self._limit} skips no more" if self._limit else ""
            raise DataError(f"{error}{skipped}") from error
        logger.warning("skipped %d/%d: %s", len(self.reasons), self._limit, error)


def read_rows(
    source: str, format: str, encoder: RowEncoder, limit: int | None, bad: BadRecords
) -> list[Row]:
    """Read and encode a source's first `limit` records that can be used; None takes all.

    Raises:
        DataError: for a source that cannot be read, more bad records than may be skipped, or
            none that is good.
    """
    rows = list(itertools.islice(_good(source, format, encoder, bad), limit))
    if not rows:
        raise DataError(f"{source}: holds no record that can be used; correct its records")
    return rows


def _good(source: str, format: str, encoder: RowEncoder, bad: BadRecords) -> Iterator[Row]:
    for where, raw in raw_records(source):
        try:
            if isinstance(raw, BadRecord):
                raise raw
            yield encoder.encode(parse_record(raw, format, where))
        except BadRecord as error:
            bad.skip(error)
