"""`python -m train key=value ...`: compose conf/train.yaml, check it, train."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig
from yaml import YAMLError

from llamahome.config import ConfigError, TrainRoot, checkout, explain_override, load_config
from llamahome.data import DataError
from llamahome.logs import configure_logging
from llamahome.models import ModelError
from train.pipeline import TrainingPipeline
from train.progress import plain_console

CONF = str(checkout() / "conf")

# The base of conf/train.yaml: exactly the keys of the dataclasses can be overridden.
ConfigStore.instance().store(name="train_root", node=TrainRoot)


def main() -> None:
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises its errors here
    try:
        train()
    except (HydraException, YAMLError) as error:
        _refuse(explain_override(error, TrainRoot))


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def train(config: DictConfig) -> None:
    """Train one run; in a sweep (`-m`) Hydra calls this for each."""
    configure_logging("WARNING")  # the progress bar shows the rest
    console = plain_console()
    try:
        result = TrainingPipeline(load_config(config, TrainRoot), console=console).run()
    except (ConfigError, DataError, ModelError) as error:
        _refuse(str(error))
    console.print(
        f"held-out loss {result.loss_before:.4f} -> {result.loss_after:.4f} after {result.steps} "
        f"steps, {result.tokens:,} tokens\nmodel in {result.model_dir}"
    )


def _refuse(message: str) -> NoReturn:
    plain_console(stderr=True).print(f"error: {message}")
    sys.exit(2)


if __name__ == "__main__":
    main()
