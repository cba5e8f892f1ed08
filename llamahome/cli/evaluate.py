"""`llamahome eval`: the cost of a policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llamahome.cli import options

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llamahome.config import EngineConfig, EvalConfig, EvalRoot, PolicyConfig
    from llamahome.evaluation import Evaluation, Result
    from llamahome.models import LoadedModel


def evaluate(context: typer.Context) -> None:
    """Measure the cost of eviction policies: perplexity, KL to dense, needles, recall.

    Takes Hydra overrides, group=option or key=value:

      llamahome eval eval=quick

      llamahome eval model.name=my-run 'eval.texts=[my_book.txt]' 'eval.contexts=[2048,4096]'
    """
    if {"-h", "--help"} & set(context.args):
        _help(context)
        return
    with options.plain_errors():
        root = _compose(context.args)
        results, output = _measure(root)
    from llamahome.cli.figures import show, summary
    from llamahome.evaluation.plots import plot_results

    show(Path(root.model.name).name, results)

    for picture in plot_results(results, output.with_suffix("")):
        typer.echo(f"plot in {picture}")
    typer.echo(f"figures in {output}")
    typer.echo(json.dumps(summary(results)))


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
    from llamahome.attention.shape import ModelShape
    from llamahome.engine.text.loading import torch_device
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
    carried = None if loaded.policy is None else loaded.policy.config
    contexts = root.eval.contexts
    shape = ModelShape.of(loaded.model)
    policies = {c: measured_policies(root.policy, root.eval, carried, shape, c) for c in contexts}
    engine = root.engine.for_model(root.model)
    results = _run(Evaluation(loaded, name, policies, root.eval, engine, output))
    if policies[contexts[0]]:
        _plot_kept(loaded, policies[contexts[0]][0], root.eval, engine, output)
    return results, output


def _run(evaluation: Evaluation) -> list[Result]:
    """Run an evaluation with a progress bar for each task, text and context."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars: dict[str, TaskID] = {}
    with Progress(*columns, transient=True) as progress:

        def on_progress(cell: str, done: int, total: int) -> None:
            if cell not in bars:
                bars[cell] = progress.add_task(cell)
            progress.update(bars[cell], completed=done, total=total)

        return evaluation.run(on_progress)


def _plot_kept(
    loaded: LoadedModel,
    policy: PolicyConfig,
    config: EvalConfig,
    engine: EngineConfig,
    output: Path,
) -> None:
    """Plot the tokens of the first window that the middle layer's first KV head keeps."""
    from llamahome.evaluation.plots import plot_kept
    from llamahome.evaluation.reading import kept_positions
    from llamahome.evaluation.text import load_text

    file = output.with_name(f"{output.stem}-kept.png")
    layer_idx = loaded.model.config.num_hidden_layers // 2
    ids = loaded.tokenizer.encode(load_text(config.texts[0]), verbose=False)[: config.contexts[0]]
    kept = kept_positions(
        loaded.model, ids, loaded.policy_for(policy), engine, layer_idx=layer_idx, head=0
    )
    title = f"what layer {layer_idx}, KV head 0 keeps under {policy.name}, budget {policy.budget}"
    plot_kept(kept, len(ids), title, file)
    typer.echo(f"plot in {file}")
