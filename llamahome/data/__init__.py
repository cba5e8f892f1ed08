"""Training data: records to token ids and labels."""

from llamahome.data.chat_template import ChatError, ChatTemplate, ControlTokenError, NoTemplateError
from llamahome.data.encode import IGNORED, Row, RowEncoder
from llamahome.data.errors import BadRecord, DataError
from llamahome.data.records import (
    Chat,
    Completion,
    Preference,
    Record,
    Tokens,
    parse_record,
    split_rows,
)
from llamahome.data.rows import BadRecords, read_rows
from llamahome.data.sources import exists, is_hub_id, plain_texts, raw_records
from llamahome.data.texts import read_text, text_rows

__all__ = [
    "IGNORED",
    "BadRecord",
    "BadRecords",
    "Chat",
    "ChatError",
    "ChatTemplate",
    "Completion",
    "ControlTokenError",
    "DataError",
    "NoTemplateError",
    "Preference",
    "Record",
    "Row",
    "RowEncoder",
    "Tokens",
    "exists",
    "is_hub_id",
    "parse_record",
    "plain_texts",
    "raw_records",
    "read_rows",
    "read_text",
    "split_rows",
    "text_rows",
]
