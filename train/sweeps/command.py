"""A sweep or a search from its jobs to an exit code: train them, then table, picture, best run."""

from __future__ import annotations

from llamahome.config import ConfigError, SearchConfig, TrainRoot
from llamahome.models import ModelManager
from train.progress import plain_console
from train.runs.folder import RunsError
from train.sweeps.halving import Halving, check_search
from train.sweeps.jobs import Job, State, Sweep, build_sweep
from train.sweeps.plot import draw_sweep
from train.sweeps.runner import SweepRunner
from train.sweeps.space import draw, parse_space
from train.sweeps.table import best_lines, sweep_table

TABLE_FILE = "sweep.txt"
FAILED, REFUSED, INTERRUPTED = 1, 2, 130


def drawn_points(root: TrainRoot) -> list[list[str]]:
    """Return the drawn overrides of each run of a search.

    Raises:
        ConfigError: for a search that finds nothing: no range, a wrong one, or a late metric.
    """
    search = root.search
    if not search.space:
        raise ConfigError(
            "search.space is empty: give at least one range, such as "
            "'search.space.trainer.learning_rate=loguniform(1e-5,1e-3)'"
        )
    return draw(parse_space(search.space), search.samples, search.seed)


def run_sweep(jobs: list[Job], search: SearchConfig | None = None) -> int:
    """Train jobs side by side, report them, and return the exit code.

    Args:
        search: how runs of a search are compared; None for a plain sweep.
    """
    console, manager = plain_console(), ModelManager()
    try:
        sweep = build_sweep(jobs, manager)
        halving = None if search is None else _halving(sweep, search)
    except ConfigError as error:
        _complain(str(error))
        return REFUSED
    console.print(_headline(sweep))
    runner = SweepRunner(sweep, manager=manager, console=console, halving=halving)
    try:
        runner.run()
    finally:
        metric = search.metric if search else "eval_loss"
        _report(sweep, metric, by_name=sweep.directory.parent == manager.runs_dir)
    return _exit_code(sweep)


def _halving(sweep: Sweep, search: SearchConfig) -> Halving | None:
    trainers = [job.root.trainer for job in sweep.jobs if job.root is not None]
    for trainer in trainers:
        check_search(search, trainer)
    if search.scheduler != "asha" or not trainers:
        return None
    if len({trainer.steps for trainer in trainers}) > 1:
        raise ConfigError(
            "search.space.trainer.steps: search.scheduler=asha compares runs of the same length; "
            "take search=random"
        )
    return Halving(search, trainers[0].steps, sweep.directory)


def _headline(sweep: Sweep) -> str:
    done = sum(job.state == State.FINISHED for job in sweep.jobs)
    finished = f", of which {done} are finished" if done else ""
    return f"sweep {sweep.name} in {sweep.directory}: {len(sweep.jobs)} runs{finished}"


def _report(sweep: Sweep, metric: str, *, by_name: bool) -> None:
    """Print the table and the best run, and write table and picture into the sweep's folder."""
    console = plain_console()
    refusals = [job.reason for job in sweep.jobs if job.state == State.REFUSED]
    for reason in dict.fromkeys(refusals):
        _complain(reason)
    table = sweep_table(sweep)
    console.print(f"\n{table}")
    if sweep.is_refused:
        return
    (sweep.directory / TABLE_FILE).write_text(f"{table}\n")
    try:
        console.print(f"\nplot in {draw_sweep(sweep, metric)}")
    except (OSError, RunsError) as error:
        console.print(f"\n{error}")
    console.print(best_lines(sweep, metric, by_name=by_name))


def _exit_code(sweep: Sweep) -> int:
    """Return the code of the gravest end of a job, and say how the sweep goes on."""
    states = {job.state for job in sweep.jobs}
    if states & {State.STOPPED, State.WAITING}:
        _complain(f"sweep {sweep.name} is not finished; the same command goes on with it")
        return INTERRUPTED
    if State.FAILED in states:
        return FAILED
    return REFUSED if State.REFUSED in states else 0


def _complain(message: str) -> None:
    plain_console(stderr=True).print(f"error: {message}")
