"""The engine: requests in, tokens out, from slots of constant size."""

from llamahome.engine.engine import Engine, EngineStats, TokenDelta
from llamahome.engine.params import (
    EngineError,
    QueueFullError,
    RequestError,
    SamplingParams,
    Usage,
)
from llamahome.engine.text_engine import TextDelta, TextEngine

__all__ = [
    "Engine",
    "EngineError",
    "EngineStats",
    "QueueFullError",
    "RequestError",
    "SamplingParams",
    "TextDelta",
    "TextEngine",
    "TokenDelta",
    "Usage",
]
