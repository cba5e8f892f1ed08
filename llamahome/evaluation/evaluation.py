"""An evaluation: tasks x texts x contexts x policies, each figure written once it is known."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llamahome.attention.shape import ModelShape, context_length
from llamahome.config import ConfigError, EngineConfig, EvalConfig, PolicyConfig
from llamahome.evaluation.reading import open_runner
from llamahome.evaluation.results import Cell, Result, drop_cut_line, folder_stamp, read_results
from llamahome.evaluation.tasks.accuracy import MAX_TOKENS, accuracy
from llamahome.evaluation.tasks.needles import needles
from llamahome.evaluation.tasks.perplexity import perplexity
from llamahome.evaluation.tasks.question import Question
from llamahome.evaluation.tasks.recalls import recalls
from llamahome.evaluation.text import load_text
from llamahome.models import LoadedModel

# Receives the name of a cell, how much of it is done, and how much there is.
OnProgress = Callable[[str, int, int], None]
Figures = Iterator[tuple[PolicyConfig, dict[str, Any]]]


class Evaluation:
    """Figures of one model under several policies, dense attention always the first of them.

    Args:
        loaded: the model.
        name: of the model, for people.
        policies: by context, in addition to dense; `measured_policies` makes those that a config
            names.
        config: the tasks and their settings.
        engine: the engine whose runner and answers are measured.
        output: JSON lines; figures that it holds are taken from there.

    Raises:
        ConfigError: for a context beyond the model's.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        name: str,
        policies: Mapping[int, Sequence[PolicyConfig]],
        config: EvalConfig,
        engine: EngineConfig,
        output: Path,
    ) -> None:
        limit = context_length(loaded.model.config)
        if max(config.contexts) > limit:
            raise ConfigError(
                f"eval.contexts={max(config.contexts)} exceeds the model's context of {limit}; "
                "name shorter ones"
            )
        self.loaded = loaded
        self.config = config
        self.engine = engine
        self.model = f"{name} {folder_stamp(loaded.path)}"
        self.policies = {c: [PolicyConfig.dense(), *policies[c]] for c in config.contexts}
        self.output = output
        self._known = {result.key: result for result in read_results(output)}
        self._runner_names: dict[str, str] = {}

    def run(self, on_progress: OnProgress) -> list[Result]:
        """Measure what is missing and return all figures: by context, text, task and policy."""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        drop_cut_line(self.output)
        cells = list(_cells(self.config))
        missing = {cell: self._missing(cell) for cell in cells}
        # A text that is too short is found before the first figure, not after hours.
        ids = {c: self._ids(c) for c in cells if missing[c] and c.task == "perplexity"}
        for cell, policies in missing.items():
            if not policies:
                continue
            measured = (
                self._perplexity(cell, ids[cell], policies, on_progress)
                if cell in ids
                else self._accuracy(cell, policies, on_progress)
            )
            for policy, values in measured:
                self._write(self._result(cell, policy, values))
        return [self._known[self._key(c, p)] for c in cells for p in self.policies[c.context]]

    def _missing(self, cell: Cell) -> list[PolicyConfig]:
        return [p for p in self.policies[cell.context] if self._key(cell, p) not in self._known]

    def _ids(self, cell: Cell) -> list[int]:
        """Return the tokens of all windows of a cell's text."""
        ids: list[int] = self.loaded.tokenizer.encode(load_text(cell.text), verbose=False)
        wanted = self.config.windows * cell.context
        if len(ids) < wanted:
            raise ConfigError(
                f"eval.windows={self.config.windows} of eval.contexts={cell.context} need "
                f"{wanted} tokens; eval.texts={cell.text!r} has {len(ids)}"
            )
        return ids[:wanted]

    def _perplexity(
        self, cell: Cell, ids: list[int], policies: list[PolicyConfig], on_progress: OnProgress
    ) -> Figures:
        measured = perplexity(
            self.loaded.model,
            ids,
            [self.loaded.policy_for(policy) for policy in policies],
            self.engine,
            window=cell.context,
            on_window=_counter(cell, self.config.windows, on_progress),
        )
        for policy, result in zip(policies, measured, strict=True):
            yield policy, {"perplexity": result.perplexity, "nll": result.nll, **asdict(result)}

    def _accuracy(
        self, cell: Cell, policies: list[PolicyConfig], on_progress: OnProgress
    ) -> Figures:
        questions = self._questions(cell)
        on_answer = _counter(cell, len(questions) * len(policies), on_progress)
        for policy in policies:
            result = accuracy(
                self.loaded.model,
                self.loaded.tokenizer,
                questions,
                self.loaded.policy_for(policy),
                self.engine,
                on_answer=on_answer,
            )
            shown = {"accuracy": result.accuracy, "interval": result.interval}
            yield policy, {**shown, **asdict(result)}

    def _questions(self, cell: Cell) -> list[Question]:
        config, tokenizer = self.config, self.loaded.tokenizer
        length = cell.context - MAX_TOKENS
        drawn = {"depths": config.depths, "samples": config.samples, "seed": config.seed}
        if cell.task == "recall":
            return list(recalls(tokenizer, length=length, **drawn))
        return list(needles(tokenizer, load_text(cell.text), length=length, **drawn))

    def _settings(self, task: str, policy: PolicyConfig) -> dict[str, Any]:
        names = ["windows"] if task == "perplexity" else ["depths", "samples", "seed"]
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

    def _result(self, cell: Cell, policy: PolicyConfig, values: dict[str, Any]) -> Result:
        shape = ModelShape.of(self.loaded.model)
        return Result(
            model=self.model,
            task=cell.task,
            text=cell.text,
            context=cell.context,
            policy=asdict(policy),
            entries=policy.average(shape.num_layers, shape.num_kv_heads, cell.context),
            settings=self._settings(cell.task, policy),
            values=values,
        )

    def _key(self, cell: Cell, policy: PolicyConfig) -> str:
        return self._result(cell, policy, {}).key

    def _write(self, result: Result) -> None:
        with self.output.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        self._known[result.key] = read_results(self.output)[-1]


def _cells(config: EvalConfig) -> Iterator[Cell]:
    """Yield what is measured: perplexity of every text, questions on the first alone."""
    for context, text in itertools.product(config.contexts, config.texts):
        for task in config.tasks:
            if task == "perplexity" or text == config.texts[0]:
                yield Cell(task, text, context)


def _counter(cell: Cell, total: int, on_progress: OnProgress) -> Callable[[], None]:
    """Return a callback that counts the cell's parts and passes the count on."""
    done = itertools.count(1)
    return lambda: on_progress(str(cell), next(done), total)
