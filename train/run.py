"""The folder of a run: its name, its config, and whether it may be resumed."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llamahome.config import ConfigError, ModelConfig, PolicyConfig, TrainerConfig, TrainRoot
from llamahome.config.cache_folder import CACHE
from llamahome.config.fixed import changed_keys
from llamahome.config.policy import CARRIED, rescaled
from llamahome.config.writable import check_writable
from llamahome.data import DataError
from llamahome.models import ModelInfo, ModelManager
from llamahome.models.adapter_chain import adapter_chain
from train.data import batches, eval_batches
from train.preflight import check_model
from train.records import build_datasets, resolve_files
from train.runs.folder import RUN_FILE
from train.samples import build_prompts, check_prompts


@dataclass(frozen=True)
class Run:
    """A prepared run.

    Attributes:
        root: the config with absolute files and the policy itself.
        directory: holds run.json, metrics.jsonl, checkpoints, curves and the exported model.
        policy_model: the model whose weights of the policy are trained on, if it has any.
    """

    root: TrainRoot
    directory: Path
    policy_model: ModelConfig

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def model_dir(self) -> Path:
        return self.directory / "model"


def prepare_run(root: TrainRoot, manager: ModelManager) -> Run:
    """Look up model, policy and files, and create or find the run's folder.

    Raises:
        ConfigError: for a config that cannot train this model, or that has another value of a
            fixed key than the named run was started with.
        DataError: for data that cannot be used, or is too little for this many workers.
        ModelError: for a model that cannot be used.
    """
    runs_dir = runs_folder(root, manager)
    manager.resolve(root.model.name, root.model.revision)
    model = manager.describe(root.model.name, root.model.revision)
    root = _looked_up(root, model)
    check_model(root, adapter_chain(model.path, manager.resolve))
    _check_data(root, model, manager)
    return _opened(root, runs_dir)


def runs_folder(root: TrainRoot, manager: ModelManager) -> Path:
    """Return the folder of all runs.

    Raises:
        ConfigError: when a run cannot be written there.
    """
    named = root.trainer.output_dir
    folder = Path(named).expanduser().resolve() if named else manager.runs_dir
    check_writable(folder / (root.trainer.run_name or ""), "trainer.output_dir" if named else CACHE)
    return folder


def dense_stage(run: Run) -> Run:
    """Create or find the folder of the first of two stages: a run of its own, without eviction.

    Raises:
        ConfigError: when its name is that of another run.
    """
    trainer = replace(
        run.root.trainer,
        run_name=f"{run.name}-dense",
        export="merged",
        steps=run.root.trainer.dense_steps,
        dense_steps=0,
        dense_share=0.0,
        kl_weight=0.0,
        anneal_steps=0,
        budget_jitter=0.0,
    )
    policy = PolicyConfig.dense(positions=run.root.policy.positions)
    return _opened(replace(run.root, policy=policy, trainer=trainer), run.directory.parent)


def second_stage(run: Run, dense: Run) -> Run:
    """Return the run that goes on from the model of its first stage."""
    model = replace(run.root.model, name=str(dense.model_dir), revision=None)
    return replace(run, root=replace(run.root, model=model))


def _opened(root: TrainRoot, runs_dir: Path) -> Run:
    """Create or find the folder of a run whose config has been looked up."""
    root = _with_stage(root, runs_dir)
    directory = _named(runs_dir, root) if root.trainer.run_name else _new(runs_dir, root)
    (directory / RUN_FILE).write_text(json.dumps(asdict(root), indent=1) + "\n")
    return Run(root, directory, root.model)


def _with_stage(root: TrainRoot, runs_dir: Path) -> TrainRoot:
    """Return the config with a ZeRO stage: the one asked for, that of the named run, or a choice.

    A run's stage stays what it was, also when it goes on with another number of workers.
    """
    deepspeed = root.deepspeed
    if deepspeed.zero_stage is None:
        started = runs_dir / (root.trainer.run_name or "") / RUN_FILE
        before = json.loads(started.read_text()) if started.is_file() else {}
        stage = before.get("deepspeed", {}).get("zero_stage", deepspeed.stage_for(root.trainer))
        deepspeed = replace(deepspeed, zero_stage=stage)
    return replace(root, deepspeed=deepspeed)


def _looked_up(root: TrainRoot, model: ModelInfo) -> TrainRoot:
    """Return the config for workers, which run elsewhere: absolute files, the policy itself."""
    if root.model.dtype != "auto":
        raise ConfigError(
            f"model.dtype={root.model.dtype!r}: a run trains in trainer.precision; "
            "leave model.dtype=auto"
        )
    if root.data.context_length > model.context_length:
        raise ConfigError(
            f"data.context_length={root.data.context_length} exceeds the {model.context_length} "
            f"tokens of {model.name}; lower it"
        )
    name = str(model.path) if model.kind == "local" else model.name
    return replace(
        root,
        model=replace(root.model, name=name),
        policy=_policy(root.policy, model),
        data=resolve_files(root.data),
    )


def _policy(policy: PolicyConfig, model: ModelInfo) -> PolicyConfig:
    if policy.name != CARRIED:
        return policy
    if model.policy is None:
        return PolicyConfig() if policy.budget is None else PolicyConfig(budget=policy.budget)
    if policy.budget is None:
        return model.policy
    return rescaled(model.policy, policy.budget, model.layers, model.kv_heads)


def _check_data(root: TrainRoot, model: ModelInfo, manager: ModelManager) -> None:
    """Build the workers' data here first: one error now is better than one in each worker."""
    tokenizer = load_tokenizer(model.path, manager)
    data, trainer = build_datasets(root.data, tokenizer, root.trainer.seed), root.trainer
    if data.pairs != (trainer.objective != "cross_entropy"):
        held = "pairs of answers" if data.pairs else "no pairs of chosen and rejected answers"
        fitting = "dpo or orpo" if data.pairs else "cross_entropy"
        raise DataError(
            f"trainer.objective={trainer.objective}: {root.data.train_file} holds {held}; "
            f"set trainer.objective={fitting}, or give other data"
        )
    share = {"rank": 0, "world_size": trainer.num_workers, "pad_id": 0}
    batches(data.train, root.data, trainer, start_step=0, **share)
    eval_batches(data.eval, trainer, **share)
    prompts = build_prompts(trainer, data, tokenizer)
    check_prompts(prompts, trainer.sample_tokens, model.context_length)


def load_tokenizer(folder: Path, manager: ModelManager) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model's folder, or of the first of its adapter's bases with one."""
    folders = adapter_chain(folder, manager.resolve)
    own = next((f for f in folders if (f / "tokenizer_config.json").is_file()), folder)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(own, local_files_only=True)
    return tokenizer


def _named(runs_dir: Path, root: TrainRoot) -> Path:
    directory = runs_dir / str(root.trainer.run_name)
    started = directory / RUN_FILE
    if started.is_file():
        _check_same(json.loads(started.read_text()), root, directory)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _check_same(started: dict[str, Any], asked: TrainRoot, directory: Path) -> None:
    different = [
        f"{key}={value!r} (was {before!r})"
        for key, value, before in changed_keys(asked, started)
        if asked.trainer.method == "lora" or not key.startswith("trainer.lora.")
    ]
    if other := _other_batches(started, asked.trainer):
        raise ConfigError(f"trainer.run_name={directory.name!r}: {other}")
    if different:
        raise ConfigError(
            f"trainer.run_name={directory.name!r} exists and was started with another config: "
            f"{', '.join(different)}. Choose a new trainer.run_name, set these back to resume, "
            f"or remove {directory}"
        )


def _other_batches(started: dict[str, Any], asked: TrainerConfig) -> str | None:
    """Return one line on a global batch, or held-out rows, of another size than at the start."""
    before = {**asdict(asked), **started.get("trainer", {})}
    if asked.batch_tokens is not None:
        for name in ("num_workers", "accumulation"):
            if getattr(asked, name) != before[name]:
                return (
                    f"trainer.{name}={getattr(asked, name)}: with trainer.batch_tokens the rows of "
                    f"a step depend on it; set trainer.{name}={before[name]}"
                )
        return None
    for name, what in (("accumulation", "global batches"), ("eval_batches", "held-out rows")):
        factors = {key: getattr(asked, key) for key in ("num_workers", "batch_size", name)}
        size, was = math.prod(factors.values()), math.prod(before[key] for key in factors)
        if size != was:
            spelled = " ".join(f"trainer.{key}={value}" for key, value in factors.items())
            needed, rest = divmod(was * factors[name], size)
            cure = "choose numbers whose product it is" if rest else f"set trainer.{name}={needed}"
            return f"{spelled} make {what} of {size}, and the run has {was}; {cure}"
    return None


def _new(runs_dir: Path, root: TrainRoot) -> Path:
    """Create a folder whose name no run has yet."""
    model = re.sub(r"[^a-z0-9.]+", "-", Path(root.model.name).name.lower()).strip("-.")
    base = f"{model}-{root.policy.name}-{datetime.now():%Y%m%d-%H%M%S}"
    directory, number = runs_dir / base, 1
    while True:
        try:
            directory.mkdir(parents=True)
            return directory
        except FileExistsError:
            number += 1
            directory = runs_dir / f"{base}-{number}"
