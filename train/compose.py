"""A run's config from Hydra overrides, where there is no command line."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from yaml import YAMLError

from llamahome.config import ConfigError, TrainRoot, checkout, explain_override, load_config


def compose_root(overrides: Sequence[str], train_file: str | None = None) -> TrainRoot:
    """Compose conf/train.yaml with overrides, as `python -m train` does.

    Args:
        train_file: data of its own; a part of it is held out unless data.eval_file is overridden.

    Raises:
        ConfigError: for an override that cannot be read, or a value that is not allowed.
    """
    ConfigStore.instance().store(name="train_root", node=TrainRoot)
    try:
        with initialize_config_dir(str(checkout() / "conf"), version_base="1.3"):
            composed = compose("train", overrides=list(overrides))
    except (HydraException, YAMLError) as error:
        raise ConfigError(explain_override(error, TrainRoot)) from error
    if train_file is not None:
        composed.data.train_file = train_file
        if not any(override.startswith("data.eval_file=") for override in overrides):
            composed.data.eval_file = None
    return load_config(composed, TrainRoot)
