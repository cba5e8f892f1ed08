from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from llamahome.config import ModelConfig, load_config
from llamahome.models import EMBEDDED_MODEL
from llamahome.models.hub import is_hub_id

FILES = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_conf_model_is_the_embedded_one_or_a_hub_id(file: Path) -> None:
    composed = OmegaConf.load(file)
    assert isinstance(composed, DictConfig)
    model = load_config(composed, ModelConfig)
    assert model.name == EMBEDDED_MODEL or is_hub_id(model.name)
    assert set(composed) <= {"name", "revision", "dtype"}
