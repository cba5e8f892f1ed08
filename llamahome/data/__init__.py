"""Training data: records to token ids and labels."""

from llamahome.data.chat_template import (
    ChatError,
    ChatTemplate,
    ControlTokenError,
    NoTemplateError,
    OptionError,
)
from llamahome.data.encode import IGNORED, Row, RowEncoder
from llamahome.data.errors import BadRecord, DataError
from llamahome.data.files import exists, files_of, is_url
from llamahome.data.records import (
    Chat,
    Completion,
    Preference,
    Record,
    Tokens,
    parse_record,
)
from llamahome.data.rows import BadRecords, RowOptions, read_rows
from llamahome.data.sources import is_hub_id, plain_texts, raw_records
from llamahome.data.table import Array, TokenTable
from llamahome.data.texts import read_text, text_rows
from llamahome.data.token_cache import TokenCache

__all__ = [
    "IGNORED",
    "Array",
    "BadRecord",
    "BadRecords",
    "Chat",
    "ChatError",
    "ChatTemplate",
    "Completion",
    "ControlTokenError",
    "DataError",
    "NoTemplateError",
    "OptionError",
    "Preference",
    "Record",
    "Row",
    "RowEncoder",
    "RowOptions",
    "TokenCache",
    "TokenTable",
    "Tokens",
    "exists",
    "files_of",
    "is_hub_id",
    "is_url",
    "parse_record",
    "plain_texts",
    "raw_records",
    "read_rows",
    "read_text",
    "text_rows",
]
