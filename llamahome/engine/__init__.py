"""The engine: requests in, tokens out, from slots of constant size."""

from llamahome.engine.engine import Engine
from llamahome.engine.outputs import EngineStats, TokenDelta
from llamahome.engine.text.answer import TokenText, TopToken
from llamahome.engine.text.text_engine import TextDelta, TextEngine
from llamahome.requests import (
    EngineError,
    Grammar,
    QueueFullError,
    RequestError,
    SamplingParams,
    Usage,
)

__all__ = [
    "Engine",
    "EngineError",
    "EngineStats",
    "Grammar",
    "QueueFullError",
    "RequestError",
    "SamplingParams",
    "TextDelta",
    "TextEngine",
    "TokenDelta",
    "TokenText",
    "TopToken",
    "Usage",
]
