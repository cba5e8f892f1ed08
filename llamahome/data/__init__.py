"""Training data: records to token ids and labels."""

from llamahome.data.encode import IGNORED, Row, encode
from llamahome.data.errors import DataError
from llamahome.data.records import Message, Record, read_records, split_records
from llamahome.data.texts import read_text, text_rows

__all__ = [
    "IGNORED",
    "DataError",
    "Message",
    "Record",
    "Row",
    "encode",
    "read_records",
    "read_text",
    "split_records",
    "text_rows",
]
