"""`python -m train key=value ...`: compose conf/train.yaml, check it, train.

What trains is imported once there is something to train: torch and Ray take seconds.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

import hydra
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from yaml import YAMLError

from llamahome.config import ConfigError, TrainRoot, checkout, explain_override, load_config
from llamahome.logs import configure_logging
from train.progress import plain_console

if TYPE_CHECKING:
    from train.sweeps.jobs import Job

CONF = str(checkout() / "conf")
REFUSED, FAILED, INTERRUPTED = 2, 1, 130  # exit codes: before anything started, after, by Ctrl-C

# The base of conf/train.yaml: exactly the keys of the dataclasses can be overridden.
ConfigStore.instance().store(name="train_root", node=TrainRoot)


class RunError(Exception):
    """A run that ended without a model: one line for the user, and the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


# The composed runs of this process's sweep: they start once Hydra has composed all of them.
swept: list[tuple[list[str], DictConfig]] = []
# Errors of a run: Hydra would print a traceback with them.
failures: list[RunError] = []


def main() -> None:
    """Train what the command line asks for, and leave with 0, or with an error's exit code."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises its errors here
    swept.clear()
    failures.clear()
    sys.argv[1:] = map(quoted_range, sys.argv[1:])
    try:
        train()
        if swept:
            _sweep()
        elif failures:
            raise failures[0]
    except (HydraException, YAMLError) as error:
        _complain(explain_override(error, TrainRoot))
        sys.exit(REFUSED)
    except RunError as error:
        _complain(str(error))
        sys.exit(error.code)
    except KeyboardInterrupt:
        cure = "the same command" if swept else "a run's own name (trainer.run_name)"
        _complain(f"interrupted; {cure} goes on from the last checkpoint")
        sys.exit(INTERRUPTED)


def quoted_range(argument: str) -> str:
    """Spell `search.space.KEY=RANGE` as Hydra needs it: a new key, and a text in quotes.

    Its grammar takes `loguniform(1e-5,1e-3)` for a call of a function that it does not have.
    """
    range_of = re.fullmatch(r"(search\.space\.[^=]+)=(?!['\"])(.+)", argument, re.DOTALL)
    return f'++{range_of[1]}="{range_of[2]}"' if range_of else argument


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def train(config: DictConfig) -> None:
    """Train one run; in a sweep (`-m`) Hydra calls this for each."""
    configure_logging("WARNING")  # the progress bar shows the rest
    composed = HydraConfig.get()
    if composed.mode == RunMode.MULTIRUN:
        swept.append((list(composed.overrides.task), config))
        return
    try:
        _run_or_search(config, composed)
    except RunError as error:
        failures.append(error)


def _run_or_search(config: DictConfig, composed: HydraConf) -> None:
    try:
        root = load_config(config, TrainRoot)
        configure_logging(root.log.level or "WARNING", root.log.format)
        if root.search.samples:
            _search(root, str(composed.job.config_name), list(composed.overrides.task))
        else:
            _run(root)
    except ConfigError as error:
        raise RunError(str(error), REFUSED) from error
    except HydraException as error:  # a drawn point does not compose
        raise RunError(explain_override(error, TrainRoot), REFUSED) from error


def _run(root: TrainRoot) -> None:
    from train.errors import FINAL, StoppedError, TrainingError
    from train.pipeline import TrainingPipeline

    console = plain_console()
    try:
        result = TrainingPipeline(root, console=console).run()
    except StoppedError as error:
        raise RunError(str(error), INTERRUPTED) from error
    except FINAL as error:
        code = FAILED if isinstance(error, TrainingError) else REFUSED
        raise RunError(str(error), code) from error
    console.print(
        f"held-out loss {result.loss_before:.4f} -> {result.loss_after:.4f} after {result.steps} "
        f"steps, {result.tokens:,} tokens\nmodel in {result.model_dir}"
    )


def _sweep() -> None:
    from train.sweeps.command import run_sweep

    jobs = [_job(overrides, config) for overrides, config in swept]
    for root in (job.root for job in jobs if job.root is not None):
        configure_logging(root.log.level or "WARNING", root.log.format)
    if any(job.root is not None and job.root.search.samples for job in jobs):
        raise RunError("search.samples: a search draws its own runs; leave out -m", REFUSED)
    _finish(run_sweep(jobs))


def _search(root: TrainRoot, config_name: str, overrides: list[str]) -> None:
    """Compose a run for each drawn point, from the same arguments but those of the search."""
    from train.sweeps.command import drawn_points, run_sweep

    points = drawn_points(root)
    base = [each for each in overrides if not re.match(r"[+~]*search[.=@]", each)]
    jobs = [_job(point, hydra.compose(config_name, overrides=[*base, *point])) for point in points]
    _finish(run_sweep(jobs, root.search))


def _job(overrides: list[str], config: DictConfig) -> Job:
    from train.sweeps.jobs import Job, State

    try:
        return Job(overrides, load_config(config, TrainRoot))
    except ConfigError as error:
        return Job(overrides, None, State.REFUSED, str(error))


def _finish(code: int) -> None:
    if code:
        sys.exit(code)


def _complain(message: str) -> None:
    plain_console(stderr=True).print(f"error: {message}")


if __name__ == "__main__":
    main()
