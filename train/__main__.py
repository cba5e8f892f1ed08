"""`python -m train key=value ...`: compose conf/train.yaml, check it, train."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from llamahome.config import ConfigError, TrainRoot, load_config
from llamahome.data import DataError
from llamahome.models import ModelError
from train.pipeline import TrainingPipeline, TrainingResult
from train.progress import plain_console

CONF = str(Path(__file__).resolve().parents[1] / "conf")

# The base of conf/train.yaml: every key that a dataclass has can be overridden, and no other.
ConfigStore.instance().store(name="train_root", node=TrainRoot)


def main() -> None:
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here, not to Hydra's printer
    try:
        train()
    except HydraException as error:
        _refuse(_reason(error))


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def train(config: DictConfig) -> None:
    """One run, or in a sweep (`-m`) each of its runs."""
    console = plain_console()
    try:
        result = TrainingPipeline(load_config(config, TrainRoot), console=console).run()
    except (ConfigError, DataError, ModelError) as error:
        _refuse(str(error))
    console.print(_summary(result))


def _refuse(message: str) -> NoReturn:
    plain_console(stderr=True).print(f"error: {message}")
    sys.exit(2)


def _reason(error: HydraException) -> str:
    """One line; Hydra's own message only says that an override failed, not why."""
    cause = error.__cause__
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
        try:
            load_config(OmegaConf.from_dotlist([f"{cause.full_key}="]), TrainRoot)
        except ConfigError as unknown_key:
            return str(unknown_key)
    said = " ".join(str(error).partition("Config search path")[0].split())
    return f"{said}: {str(cause).splitlines()[0]}" if cause else said


def _summary(result: TrainingResult) -> str:
    return (
        f"held-out loss {result.loss_before:.4f} -> {result.loss_after:.4f} after {result.steps} "
        f"steps, {result.tokens:,} tokens\nmodel in {result.model_dir}"
    )


if __name__ == "__main__":
    main()
