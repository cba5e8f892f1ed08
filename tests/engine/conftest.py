"""Fixtures that the engine's tests share."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["torch", "native"])
def runner(request: pytest.FixtureRequest) -> str:
    """Each of the runners; both compute in float32 here."""
    name: str = request.param
    return name
