"""The engine: requests in, tokens out, from slots of constant size."""

from llamahome.engine.engine import Engine
from llamahome.engine.request import TokenDelta
from llamahome.engine.text.delta import TextDelta
from llamahome.engine.text.text_engine import TextEngine
from llamahome.requests import (
    EngineError,
    EngineStats,
    Grammar,
    Progress,
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
    "Progress",
    "QueueFullError",
    "RequestError",
    "SamplingParams",
    "TextDelta",
    "TextEngine",
    "TokenDelta",
    "Usage",
]
