"""An evaluation: tasks x policies x budgets, each figure written as soon as it is known."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llamahome.config import ConfigError, EngineConfig, EvalConfig, PolicyConfig
from llamahome.config.policy import CARRIED
from llamahome.evaluation.reading import open_runner
from llamahome.evaluation.tasks.accuracy import accuracy
from llamahome.evaluation.tasks.perplexity import perplexity
from llamahome.evaluation.tasks.retrieval import Question, needles, recalls
from llamahome.evaluation.text import load_text
from llamahome.models import LoadedModel

# Receives the task, how much of it is done, and how much there is.
OnProgress = Callable[[str, int, int], None]
Figures = Iterator[tuple[PolicyConfig, dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure of one task under one policy.

    Attributes:
        model: name and stamp of the folder it came from.
        task: `perplexity`, `needle` or `recall`.
        settings: what else the task's numbers depend on, the runner among it.
        values: the task's result, with the fields of its dataclass.
    """

    model: str
    task: str
    policy: dict[str, Any]
    settings: dict[str, Any]
    values: dict[str, Any]

    @property
    def key(self) -> str:
        """The facts that make two figures the same, so that one of them is not measured."""
        return json.dumps([self.model, self.task, self.policy, self.settings], sort_keys=True)


class Evaluation:
    """Figures of one model under several policies, dense attention always the first of them.

    Args:
        loaded: the model.
        name: of the model, for people.
        policies: in addition to dense; `measured_policies` makes those that a config names.
        config: the tasks and their settings.
        engine: the engine whose runner and answers are measured.
        output: JSON lines; figures that it holds are taken from there.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        name: str,
        policies: Sequence[PolicyConfig],
        config: EvalConfig,
        engine: EngineConfig,
        output: Path,
    ) -> None:
        self.loaded = loaded
        self.config = config
        self.engine = engine
        self.model = f"{name} {folder_stamp(loaded.path)}"
        self.policies = [PolicyConfig.dense(), *policies]
        self.output = output
        self._known = {result.key: result for result in read_results(output)}
        self._runner_names: dict[str, str] = {}

    def run(self, on_progress: OnProgress) -> list[Result]:
        """Measure what is missing and return all figures, in the order of tasks and policies."""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        _drop_cut_line(self.output)
        for task in self.config.tasks:
            missing = [p for p in self.policies if self._key(task, p) not in self._known]
            measure = self._perplexity if task == "perplexity" else self._accuracy
            for policy, values in measure(task, missing, on_progress) if missing else ():
                self._write(self._result(task, policy, values))
        return [self._known[self._key(t, p)] for t in self.config.tasks for p in self.policies]

    def _perplexity(
        self, task: str, policies: list[PolicyConfig], on_progress: OnProgress
    ) -> Figures:
        config = self.config
        ids = self.loaded.tokenizer.encode(load_text(config.text), verbose=False)
        wanted = config.windows * config.context
        if len(ids) < wanted:
            raise ConfigError(
                f"eval.windows={config.windows} of eval.context={config.context} need {wanted} "
                f"tokens; eval.text={config.text!r} has {len(ids)}"
            )
        measured = perplexity(
            self.loaded.model,
            ids[:wanted],
            [self.loaded.policy_for(policy) for policy in policies],
            self.engine,
            window=config.context,
            on_window=_counter(task, config.windows, on_progress),
        )
        for policy, result in zip(policies, measured, strict=True):
            yield policy, {"perplexity": result.perplexity, **asdict(result)}

    def _accuracy(
        self, task: str, policies: list[PolicyConfig], on_progress: OnProgress
    ) -> Figures:
        questions = self._questions(task)
        on_answer = _counter(task, len(questions) * len(policies), on_progress)
        for policy in policies:
            result = accuracy(
                self.loaded.model,
                self.loaded.tokenizer,
                questions,
                self.loaded.policy_for(policy),
                self.engine,
                on_answer=on_answer,
            )
            yield policy, {"accuracy": result.accuracy, **asdict(result)}

    def _questions(self, task: str) -> list[Question]:
        config, tokenizer = self.config, self.loaded.tokenizer
        drawn = {"depths": config.depths, "samples": config.samples, "seed": config.seed}
        if task == "recall":
            return list(recalls(tokenizer, length=config.context, **drawn))
        return list(needles(tokenizer, load_text(config.text), length=config.context, **drawn))

    def _settings(self, task: str, policy: PolicyConfig) -> dict[str, Any]:
        names = ["text", "context"]
        names += ["windows"] if task == "perplexity" else ["depths", "samples", "seed"]
        settings = {name: getattr(self.config, name) for name in names}
        return {**settings, "runner": self._runner_name(policy)}

    def _runner_name(self, policy: PolicyConfig) -> str:
        """Return the name of the runner that the engine has for `policy`."""
        # Opening a runner packs all weights, and of a policy only its positions decide which it is.
        known = self._runner_names
        if policy.positions not in known:
            runner = open_runner(
                self.loaded.model, self.loaded.policy_for(policy), self.engine, max_length=16
            )
            known[policy.positions] = runner.name
        return known[policy.positions]

    def _result(self, task: str, policy: PolicyConfig, values: dict[str, Any]) -> Result:
        return Result(
            model=self.model,
            task=task,
            policy=asdict(policy),
            settings=self._settings(task, policy),
            values=values,
        )

    def _key(self, task: str, policy: PolicyConfig) -> str:
        return self._result(task, policy, {}).key

    def _write(self, result: Result) -> None:
        with self.output.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        self._known[result.key] = read_results(self.output)[-1]


def _counter(task: str, total: int, on_progress: OnProgress) -> Callable[[], None]:
    """Return a callback that counts the task's parts and passes the count on."""
    done = itertools.count(1)
    return lambda: on_progress(task, next(done), total)


def measured_policies(
    base: PolicyConfig, config: EvalConfig, carried: PolicyConfig | None
) -> list[PolicyConfig]:
    """Return every policy at every budget; `carried` once, at its own, and `full` not at all.

    Raises:
        ConfigError: for a budget that a policy cannot have, or a model that carries no policy.
    """
    policies = []
    for name in config.policies:
        if name == CARRIED:
            if carried is None:
                raise ConfigError("eval.policies: the model carries no policy; name one, like h2o")
            policies.append(carried)
        elif name != "full":
            policies += [_at(base, name, config, budget) for budget in config.budgets]
    return policies


def _at(base: PolicyConfig, name: str, config: EvalConfig, budget: float) -> PolicyConfig:
    entries = config.entries(budget)
    recent = max(1, round(config.recent_share * entries))
    recent = min(recent, max(1, entries - base.sink))
    return replace(
        base, name=name, budget=entries, recent=recent, interval=min(base.interval, recent)
    )


def read_results(file: Path) -> list[Result]:
    """Return the results of a file without a last line that was cut short."""
    if not file.is_file():
        return []
    whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [Result(**json.loads(line)) for line in whole]


def _drop_cut_line(file: Path) -> None:
    """Remove a figure that was being written when the process died; it is measured again."""
    if file.is_file():
        text = file.read_text()
        file.write_text(text[: text.rfind("\n") + 1])


def folder_stamp(folder: Path) -> str:
    """Return a short text that changes when a model's files do, without reading gigabytes."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
