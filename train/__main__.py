"""`python -m train key=value ...`: compose conf/train.yaml, check it, train.

What trains is imported once there is something to train: torch and Ray take seconds.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from yaml import YAMLError

from llamahome.config import ConfigError, TrainRoot, checkout, explain_override, load_config
from llamahome.logs import configure_logging
from train.progress import plain_console
from train.sweep import Outcome, sweep_table

if TYPE_CHECKING:
    from train.pipeline import TrainingResult

CONF = str(checkout() / "conf")
REFUSED, FAILED, INTERRUPTED = 2, 1, 130  # exit codes: before anything started, after, by Ctrl-C

# The base of conf/train.yaml: exactly the keys of the dataclasses can be overridden.
ConfigStore.instance().store(name="train_root", node=TrainRoot)


class RunError(Exception):
    """A run that ended without a model: one line for the user, and the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


# The runs of this process's sweep, and the exit codes of runs that failed.
outcomes: list[Outcome] = []
codes: list[int] = []


def main() -> None:
    """Train what the command line asks for, and leave with 0, or with an error's exit code."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises its errors here
    outcomes.clear()
    codes.clear()
    try:
        train()
    except (HydraException, YAMLError) as error:
        _complain(explain_override(error, TrainRoot))
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        _complain("interrupted; a run's own name (trainer.run_name) resumes it")
        sys.exit(INTERRUPTED)
    finally:
        if outcomes:
            plain_console().print(f"\n{sweep_table(outcomes)}")
    if codes:
        sys.exit(codes[-1])


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def train(config: DictConfig) -> None:
    """Train one run; in a sweep (`-m`) Hydra calls this for each."""
    configure_logging("WARNING")  # the progress bar shows the rest
    composed = HydraConfig.get()
    try:
        if composed.mode == RunMode.MULTIRUN:
            _run_of_sweep(config, list(composed.overrides.task))
        else:
            _run(config)
    except RunError as error:
        _complain(str(error))
        codes.append(error.code)


def _run_of_sweep(config: DictConfig, overrides: list[str]) -> None:
    outcomes.append(Outcome(overrides=overrides))  # failed, until there is a result
    plain_console().print(f"\nsweep, run {len(outcomes)}: {' '.join(overrides)}")
    result = _run(config)
    outcomes[-1] = Outcome(
        overrides=overrides,
        name=result.run_name,
        losses=(result.loss_before, result.loss_after),
        model_dir=result.model_dir,
    )


def _run(config: DictConfig) -> TrainingResult:
    try:
        root = load_config(config, TrainRoot)
    except ConfigError as error:
        raise RunError(str(error), REFUSED) from error

    from train.errors import FINAL, StoppedError, TrainingError
    from train.pipeline import TrainingPipeline

    console = plain_console()
    try:
        result = TrainingPipeline(root, console=console).run()
    except StoppedError as error:
        _complain(str(error))
        sys.exit(INTERRUPTED)  # a sweep ends here, too
    except FINAL as error:
        code = FAILED if isinstance(error, TrainingError) else REFUSED
        raise RunError(str(error), code) from error
    console.print(
        f"held-out loss {result.loss_before:.4f} -> {result.loss_after:.4f} after {result.steps} "
        f"steps, {result.tokens:,} tokens\nmodel in {result.model_dir}"
    )
    return result


def _complain(message: str) -> None:
    plain_console(stderr=True).print(f"error: {message}")


if __name__ == "__main__":
    main()
