"""Managers of an empty cache, and the embedded model, converted once per machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llamahome.config import ModelConfig
from llamahome.models import EMBEDDED_MODEL, LoadedModel, ModelManager, load_model


@pytest.fixture(scope="session")
def embedded_model_dir() -> Path:
    return ModelManager().resolve(EMBEDDED_MODEL)


@pytest.fixture
def manager(tmp_path: Path) -> ModelManager:
    return ModelManager(tmp_path / "cache")


@pytest.fixture
def load(manager: ModelManager) -> Callable[[Path], LoadedModel]:
    """Load the model of a folder."""
    return lambda folder: load_model(ModelConfig(name=str(folder)), manager=manager)
