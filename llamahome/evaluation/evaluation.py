"""An evaluation: tasks x policies x budgets, each figure written down as soon as it is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llamahome.config import ConfigError, EvalConfig, PolicyConfig
from llamahome.config.policy import CARRIED
from llamahome.evaluation.tasks.accuracy import accuracy
from llamahome.evaluation.tasks.perplexity import perplexity
from llamahome.evaluation.tasks.retrieval import Question, needles, recalls
from llamahome.evaluation.text import load_text
from llamahome.models import LoadedModel

DENSE = PolicyConfig(name="full", budget=None)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure of one task under one policy.

    Attributes:
        model: name and fingerprint of the folder it came from.
        task: `perplexity`, `needle` or `recall`.
        settings: what else the task's numbers depend on.
        values: the task's result, as its dataclass has it.
    """

    model: str
    task: str
    policy: dict[str, Any]
    settings: dict[str, Any]
    values: dict[str, Any]

    @property
    def key(self) -> str:
        """What must be equal for a figure not to be measured again."""
        return json.dumps([self.model, self.task, self.policy, self.settings], sort_keys=True)


class Evaluation:
    """Measures one model under several policies, dense attention always the first of them.

    Args:
        loaded: the model.
        name: of the model, for people.
        policies: beside dense; `measured_policies` makes those that a config names.
        config: the tasks and their settings.
        output: JSON lines; figures that are in it already are taken from there.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        name: str,
        policies: Sequence[PolicyConfig],
        config: EvalConfig,
        output: Path,
    ) -> None:
        self.loaded = loaded
        self.config = config
        self.model = f"{name} {fingerprint(loaded.path)}"
        self.policies = [DENSE, *policies]
        self.output = output
        self._known = {result.key: result for result in read_results(output)}

    def run(self, on_progress: Callable[[str, int, int], None]) -> list[Result]:
        """All figures, in the order of tasks and policies.

        Args:
            on_progress: called with what is measured, and how much of it is done, of how much.
        """
        self.output.parent.mkdir(parents=True, exist_ok=True)
        _drop_cut_line(self.output)
        tasks = {"perplexity": self._perplexity, "needle": self._needle, "recall": self._recall}
        for task in self.config.tasks:
            missing = [p for p in self.policies if self._key(task, p) not in self._known]
            for policy, values in tasks[task](missing, on_progress) if missing else ():
                self._write(self._result(task, policy, values))
        return [self._known[self._key(t, p)] for t in self.config.tasks for p in self.policies]

    def _perplexity(
        self, policies: list[PolicyConfig], on_progress: Callable[[str, int, int], None]
    ) -> Iterator[tuple[PolicyConfig, dict[str, Any]]]:
        config, done = self.config, 0
        ids = self.loaded.tokenizer.encode(load_text(config.text), verbose=False)
        wanted = config.windows * config.context
        if len(ids) < wanted:
            raise ConfigError(
                f"eval.windows={config.windows} of eval.context={config.context} need {wanted} "
                f"tokens; eval.text={config.text!r} has {len(ids)}"
            )

        def on_window() -> None:
            nonlocal done
            done += 1
            on_progress("perplexity", done, config.windows)

        measured = perplexity(
            self.loaded.model,
            torch.tensor(ids[:wanted]),
            policies,
            window=config.context,
            on_window=on_window,
        )
        for policy, result in zip(policies, measured, strict=True):
            yield policy, {"perplexity": result.perplexity, **asdict(result)}

    def _needle(
        self, policies: list[PolicyConfig], on_progress: Callable[[str, int, int], None]
    ) -> Iterator[tuple[PolicyConfig, dict[str, Any]]]:
        config = self.config
        asked = needles(
            self.loaded.tokenizer,
            load_text(config.text),
            length=config.context,
            depths=config.depths,
            samples=config.samples,
            seed=config.seed,
        )
        return self._accuracies("needle", list(asked), policies, on_progress)

    def _recall(
        self, policies: list[PolicyConfig], on_progress: Callable[[str, int, int], None]
    ) -> Iterator[tuple[PolicyConfig, dict[str, Any]]]:
        config = self.config
        asked = recalls(
            self.loaded.tokenizer,
            length=config.context,
            depths=config.depths,
            samples=config.samples,
            seed=config.seed,
        )
        return self._accuracies("recall", list(asked), policies, on_progress)

    def _accuracies(
        self,
        task: str,
        questions: list[Question],
        policies: list[PolicyConfig],
        on_progress: Callable[[str, int, int], None],
    ) -> Iterator[tuple[PolicyConfig, dict[str, Any]]]:
        done, total = 0, len(questions) * len(policies)

        def on_answer(count: int) -> None:
            nonlocal done
            done += count
            on_progress(task, done, total)

        for policy in policies:
            result = accuracy(
                self.loaded.model,
                self.loaded.tokenizer,
                questions,
                policy,
                batch_size=self.config.batch_size,
                on_answer=on_answer,
            )
            yield policy, {"accuracy": result.accuracy, **asdict(result)}

    def _settings(self, task: str) -> dict[str, Any]:
        names = ["text", "context"]
        names += ["windows"] if task == "perplexity" else ["depths", "samples", "seed"]
        return {name: getattr(self.config, name) for name in names}

    def _result(self, task: str, policy: PolicyConfig, values: dict[str, Any]) -> Result:
        return Result(
            model=self.model,
            task=task,
            policy=asdict(policy),
            settings=self._settings(task),
            values=values,
        )

    def _key(self, task: str, policy: PolicyConfig) -> str:
        return self._result(task, policy, {}).key

    def _write(self, result: Result) -> None:
        with self.output.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        self._known[result.key] = read_results(self.output)[-1]


def measured_policies(
    base: PolicyConfig, config: EvalConfig, carried: PolicyConfig | None
) -> list[PolicyConfig]:
    """Every policy at every budget; `carried` once, at its own, and `full` not at all.

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
    """What a file of results holds; a last line that was cut short is left out."""
    if not file.is_file():
        return []
    whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [Result(**json.loads(line)) for line in whole]


def _drop_cut_line(file: Path) -> None:
    """A figure that was being written when the process died is measured again."""
    if file.is_file():
        text = file.read_text()
        file.write_text(text[: text.rfind("\n") + 1])


def fingerprint(folder: Path) -> str:
    """Changes when a model's files do, without reading gigabytes."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
