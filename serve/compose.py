"""An endpoint's config from Hydra overrides, where there is no command line."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from yaml import YAMLError

from llamahome.config import ConfigError, ServeRoot, checkout, explain_override, load_config


def compose_root(overrides: Sequence[str]) -> ServeRoot:
    """Compose conf/serve.yaml with overrides, as `python -m serve` does.

    Raises:
        ConfigError: for an override that cannot be read, or a value that is not allowed.
    """
    ConfigStore.instance().store(name="serve_root", node=ServeRoot)
    try:
        with initialize_config_dir(str(checkout() / "conf"), version_base="1.3"):
            composed = compose("serve", overrides=list(overrides))
    except (HydraException, YAMLError) as error:
        raise ConfigError(explain_override(error, ServeRoot)) from error
    return load_config(composed, ServeRoot)
