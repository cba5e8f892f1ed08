"""The terminal: `llamahome`. Needs no Ray."""

from llamahome.cli.app import app

__all__ = ["app"]
