"""`llamahome eval`: the cost of a policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llamahome.cli import options

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llamahome.config import EngineConfig, EvalConfig, EvalRoot, PolicyConfig
    from llamahome.evaluation import Result
    from llamahome.models import LoadedModel

MEANS = {"perplexity": "perplexity", "needle": "accuracy", "recall": "accuracy"}


def evaluate(context: typer.Context) -> None:
    """Measure the cost of eviction policies: perplexity, KL to dense, needles, recall.

    Takes Hydra overrides, group=option or key=value:

      llamahome eval eval=quick

      llamahome eval model.name=my-run eval.text=my_book.txt eval.context=4096
    """
    if {"-h", "--help"} & set(context.args):
        _help(context)
        return
    with options.plain_errors():
        root = _compose(context.args)
        results, output = _measure(root)
    _show(root, results)
    from llamahome.evaluation.plots import plot_results

    for picture in plot_results(results, output.with_suffix("")):
        typer.echo(f"plot in {picture}")
    typer.echo(f"figures in {output}")
    typer.echo(json.dumps(_summary(results)))


def _help(context: typer.Context) -> None:
    """Print the command's help, then the options of each group, and every key with its default."""
    from omegaconf import OmegaConf

    from llamahome.config.checkout import CONF

    composed = _composed([])
    typer.echo(context.get_help())
    for group in map(str, composed):
        choices = sorted(file.stem for file in CONF.glob(f"{group}/*.yaml"))
        typer.echo(f"{group}: {', '.join(choices)}")
    typer.echo(f"\n{OmegaConf.to_yaml(composed)}")
    typer.echo("llamahome/config/evaluation.py explains the keys.")


def _compose(overrides: list[str]) -> EvalRoot:
    from llamahome.config import EvalRoot, load_config

    return load_config(_composed(overrides), EvalRoot)


def _composed(overrides: list[str]) -> DictConfig:
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from yaml import YAMLError

    from llamahome.config import ConfigError, EvalRoot, explain_override
    from llamahome.config.checkout import CONF

    ConfigStore.instance().store(name="eval_root", node=EvalRoot)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("eval", overrides=overrides)
    except (HydraException, YAMLError) as error:
        raise ConfigError(explain_override(error, EvalRoot)) from error


def _measure(root: EvalRoot) -> tuple[list[Result], Path]:
    """Measure what `root` asks for, with a progress bar; return the figures and their file."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from llamahome.engine.text.text_engine import torch_device
    from llamahome.evaluation import Evaluation, measured_policies
    from llamahome.models import ModelManager, load_model

    manager = ModelManager()
    loaded = load_model(root.model, device=torch_device(root.engine.device), manager=manager)
    name = Path(root.model.name).name
    output = (
        manager.cache_dir / "evaluations" / f"{name}.jsonl"
        if root.eval.output is None
        else Path(root.eval.output).expanduser()
    )
    policies = measured_policies(
        root.policy, root.eval, None if loaded.policy is None else loaded.policy.config
    )
    engine = root.engine.for_model(root.model)
    evaluation = Evaluation(loaded, name, policies, root.eval, engine, output)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        tasks = {task: bar.add_task(task, total=None) for task in root.eval.tasks}
        results = evaluation.run(
            lambda task, done, total: bar.update(tasks[task], completed=done, total=total)
        )
    if policies:
        _plot_kept(loaded, policies[0], root.eval, engine, output)
    return results, output


def _plot_kept(
    loaded: LoadedModel,
    policy: PolicyConfig,
    config: EvalConfig,
    engine: EngineConfig,
    output: Path,
) -> None:
    """Plot the tokens of the text's first window that the middle layer's first KV head keeps."""
    from llamahome.evaluation.plots import plot_kept
    from llamahome.evaluation.reading import kept_positions
    from llamahome.evaluation.text import load_text

    file = output.with_name(f"{output.stem}-kept.png")
    layer_idx = loaded.model.config.num_hidden_layers // 2
    ids = loaded.tokenizer.encode(load_text(config.text), verbose=False)[: config.context]
    kept = kept_positions(
        loaded.model, ids, loaded.policy_for(policy), engine, layer_idx=layer_idx, head=0
    )
    title = f"what layer {layer_idx}, KV head 0 keeps under {policy.name}, budget {policy.budget}"
    plot_kept(kept, len(ids), title, file)
    typer.echo(f"plot in {file}")


def _show(root: EvalRoot, results: list[Result]) -> None:
    from rich.console import Console
    from rich.table import Table

    config = root.eval
    runners = dict.fromkeys(result.settings["runner"] for result in results)
    name = Path(root.model.name).name
    table = Table(title=f"{name}, {config.context} tokens of {config.text}; {'; '.join(runners)}")
    columns = [column for task in config.tasks for column in _columns(task)]
    for column in ("policy", "budget", *columns, "KV MiB at most", "at the end"):
        table.add_column(column, justify="right")
    grouped: dict[str, dict[str, Result]] = {}
    for result in results:
        grouped.setdefault(json.dumps(result.policy), {})[result.task] = result
    for by_task in grouped.values():
        table.add_row(*_row(by_task, results, config.tasks))
    Console().print(table)


def _columns(task: str) -> list[str]:
    return ["perplexity", "over dense", "KL to dense"] if task == "perplexity" else [task]


def _row(by_task: dict[str, Result], results: list[Result], tasks: list[str]) -> list[str]:
    some = next(iter(by_task.values()))
    budget = some.policy["budget"]
    row = [some.policy["name"], "all" if budget is None else str(budget)]
    for task in tasks:
        values = by_task[task].values
        if task == "perplexity":
            dense = next(r for r in results if r.task == task).values["perplexity"]
            kl = sum(values["kl"]) / len(values["kl"])
            row += [
                f"{values['perplexity']:.3f}",
                f"{values['perplexity'] / dense - 1:+.1%}",
                f"{kl:.4f}",
            ]
        else:
            row.append(f"{values['right']}/{values['asked']}")
    kv: dict[str, Any] = some.values["kv"]
    return [*row, f"{kv['peak'] / 2**20:.1f}", f"{kv['final'] / 2**20:.1f}"]


def _summary(results: list[Result]) -> list[dict[str, Any]]:
    return [
        {
            "task": result.task,
            "policy": result.policy["name"],
            "budget": result.policy["budget"],
            "runner": result.settings["runner"],
            MEANS[result.task]: result.values[MEANS[result.task]],
            "kv_bytes": result.values["kv"]["peak"],
            "kv_bytes_final": result.values["kv"]["final"],
        }
        for result in results
    ]
