"""Lines that a program writes about its work."""

from __future__ import annotations

from dataclasses import dataclass

from llamahome.config.checks import one_of

FORMATS = ("text", "json")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(kw_only=True)
class LogConfig:
    """Lines on standard error.

    Attributes:
        format: `text` for people, or `json`: one object in each line.
        level: the least important lines of LlamaHome that are written: DEBUG, INFO, WARNING or
            ERROR. None is INFO for serving and WARNING for training. Other packages' lines are
            written from WARNING up.
    """

    format: str = "text"
    level: str | None = None

    def __post_init__(self) -> None:
        one_of("log.format", self.format, FORMATS)
        if self.level is not None:
            one_of("log.level", self.level, LEVELS)
