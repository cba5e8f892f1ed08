from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from llamahome.config import ConfigError, DataConfig, load_config
from llamahome.data import read_text

FOLDER = Path(__file__).parents[2] / "conf" / "data"
NAMES = ("alpaca", "auto", "chat", "custom", "retrieval", "text", "wordnet")


def composed(name: str) -> DictConfig:
    loaded = OmegaConf.load(FOLDER / f"{name}.yaml")
    assert isinstance(loaded, DictConfig)
    return loaded


@pytest.mark.parametrize("name", NAMES)
def test_a_data_file_sets_only_keys_that_exist(name: str) -> None:
    assert set(composed(name)) <= {field.name for field in fields(DataConfig)}


def test_wordnet_is_ready_to_use() -> None:
    data = load_config(composed("wordnet"), DataConfig)
    assert data.eval_file is not None
    assert all((FOLDER.parents[1] / file).is_file() for file in (data.train_file, data.eval_file))


def test_text_is_ready_to_use() -> None:
    data = load_config(composed("text"), DataConfig)
    assert len(read_text(FOLDER.parents[1] / data.train_file)) > 500_000


@pytest.mark.parametrize("name", ["alpaca", "auto", "chat", "custom"])
def test_own_data_needs_a_file(name: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.train_file='' is not allowed: name a file"):
        load_config(composed(name), DataConfig)
    given = OmegaConf.merge(composed(name), {"train_file": "mine"})
    assert isinstance(given, DictConfig)
    data = load_config(given, DataConfig)
    assert (data.format, data.train_file, data.eval_file) == (name, "mine", None)


def test_data_configs_are_all_tested() -> None:
    assert sorted(file.stem for file in FOLDER.iterdir()) == sorted(NAMES)
