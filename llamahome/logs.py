"""Configuration of logging, in this one place: lines for people, or JSON."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Attributes that every record has; the others are fields of the line.
_USUAL = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"))
_PLAIN = re.compile(r"[\w.:/@+-]+", re.ASCII)
_LOGGERS = ("llamahome", "cluster", "train", "serve")

# Says what else the lines of the request in hand hold, such as its id. Tasks that the request
# starts see it, too; a thread that works for several requests runs in the context of each.
ABOUT: ContextVar[Callable[[], Mapping[str, object]]] = ContextVar("about", default=dict)


def configure_logging(level: str = "INFO", form: str = "text", **fields: object) -> None:
    """Log to standard error: LlamaHome's records from `level` up, others from WARNING up.

    Args:
        form: `text` or `json`, see `llamahome.config.log`.
        fields: what each line of this process holds, next to those of `ABOUT`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_json_lines() if form == "json" else _TextLines(_FORMAT, "%H:%M:%S"))
    handler.addFilter(Fields(fields))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(level)


class Fields(logging.Filter):
    """Adds fields to records that have none of these names."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        super().__init__()
        self._fields = fields

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in {**self._fields, **ABOUT.get()()}.items():
            record.__dict__.setdefault(name, value)
        return True


class _TextLines(logging.Formatter):
    """The message, and fields as name=value, in quotes where a value is more than a word."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        added = ((name, value) for name, value in vars(record).items() if name not in _USUAL)
        pairs = (f" {name}={_word(value)}" for name, value in added if not name.startswith("_"))
        return super().formatMessage(record) + "".join(pairs)


def _word(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _json_lines() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    options: dict[str, Any] = {
        "rename_fields": {"levelname": "level", "name": "logger"},
        "timestamp": "time",
        "reserved_attrs": _USUAL,
    }
    return JsonFormatter(["levelname", "name", "message"], **options)
