"""Two checkouts of this repository against each other: is the new one as fast as the old?

    python -m benchmarks.before_after ../before .          # some 5 minutes on a quiet machine
    python -m benchmarks.before_after ../before . --quick  # some 1 minute

Each checkout is a process of its own, which imports its own sources and is stopped while the other
measures. They take turns at the same work, in turn first: prefill and decode of the embedded model
through `Engine`, dense and under h2o at 10 % of the context, for 1 and 8 requests; and the loss and
gradients of one sequence with hybrid attention. Speeds are compared round by round, so that a
machine that slows down for a while does so for both. `same` says whether both gave the same tokens,
or the same loss, to the last bit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.draw import table
from benchmarks.process import SCRIPTS, Process
from benchmarks.workload import DENSE, cut, evicting, novel_ids
from llamahome.config import PolicyConfig

REQUESTS = (1, 8)
STEPS = 64  # a turn of decoding: as many as lie between two compactions


@dataclass(frozen=True, kw_only=True)
class Form:
    """How much is done; `prefills`, `decodes` and `trainings` are rounds."""

    context: int
    prefills: int
    decodes: int
    trainings: int


FULL = Form(context=2048, prefills=3, decodes=16, trainings=4)
QUICK = Form(context=512, prefills=2, decodes=8, trainings=2)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One figure of both checkouts.

    Attributes:
        before, after: seconds, one figure a round; of a step, a prefill or a training step.
        tokens: that those seconds are for.
        same: whether both gave the same.
    """

    figure: str
    before: list[float]
    after: list[float]
    tokens: int
    same: bool

    @property
    def ratios(self) -> list[float]:
        """Speed after over speed before, of each round, in rising order."""
        return sorted(old / new for old, new in zip(self.before, self.after, strict=True))

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def fastest(self) -> float:
        """The same of each side's fastest round, which other programs have delayed least."""
        return min(self.before) / min(self.after)

    def summary(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio, "fastest": self.fastest}


class Pair:
    """Both checkouts, which take turns."""

    def __init__(self, roots: Sequence[Path], threads: int, logs: Path) -> None:
        self._sides: list[Process] = []
        try:
            for root, name in zip(roots, ("before", "after"), strict=True):
                env = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": str(threads)}
                script = [str(SCRIPTS / "checkout_peer.py")]
                side = Process(Path(sys.executable), script, logs / f"{name}.log", env)
                self._sides.append(side)
                side.ask("load", root=str(root), threads=threads)
        except BaseException:
            self.close()
            raise

    def both(self, cmd: str, **arguments: Any) -> list[dict[str, Any]]:
        return [side.ask(cmd, **arguments) for side in self._sides]

    def rounds(self, count: int, cmd: str, **arguments: Any) -> tuple[list[list[float]], bool]:
        """Return each side's seconds by round, and whether their digests, if any, were equal.

        One round that is not counted comes first: memory is touched, and code loaded.
        """
        took: list[list[float]] = [[], []]
        same = True
        for number in range(count + 1):
            replies: dict[int, dict[str, Any]] = {}
            for index in (0, 1) if number % 2 else (1, 0):
                replies[index] = self._sides[index].ask(cmd, **arguments)
            same &= replies[0].get("digest") == replies[1].get("digest")
            if number:
                for index in (0, 1):
                    took[index].append(replies[index]["seconds"])
        return took, same

    def close(self) -> None:
        for side in self._sides:
            side.close()


@contextmanager
def opened(roots: Sequence[Path], threads: int, logs: Path) -> Iterator[Pair]:
    pair = Pair(roots, threads, logs)
    try:
        yield pair
    finally:
        pair.close()


def changed(policy: PolicyConfig) -> dict[str, Any]:
    """Return the fields that are no defaults: a new field may be unknown to the older checkout."""
    defaults = asdict(PolicyConfig())
    return {key: value for key, value in asdict(policy).items() if value != defaults[key]}


def serving(
    pair: Pair, policy: PolicyConfig, prompts: list[list[int]], form: Form
) -> list[Compared]:
    """Compare prefill and decode of some requests at once under one policy."""
    requests = len(prompts)
    pair.both("open", policy=changed(policy), requests=requests, length=form.context)
    read, _ = pair.rounds(form.prefills, "fill", prompts=prompts)
    decoded, _ = pair.rounds(form.decodes, "decode", steps=STEPS)
    before, after = (reply["digest"] for reply in pair.both("drop"))
    kind = "dense" if policy == DENSE else "10 %"
    of = f"{requests} x {form.context:,}, {kind}"
    return [
        _compared(f"prefill {of}", read, requests * form.context, before == after),
        _compared(f"decode {of}", decoded, requests, before == after),
    ]


def training(pair: Pair, policy: PolicyConfig, prompt: list[int], form: Form) -> Compared:
    """Compare the loss and gradients of one sequence."""
    took, same = pair.rounds(form.trainings, "train", policy=changed(policy), prompt=prompt)
    return _compared(f"training step, {form.context:,}, 10 %", took, form.context, same)


def _compared(figure: str, took: list[list[float]], tokens: int, same: bool) -> Compared:
    return Compared(figure=figure, before=took[0], after=took[1], tokens=tokens, same=same)


def show(found: Sequence[Compared], console: Console) -> None:
    columns = ("before", "after", "unit", "speed ratio", "rounds", "of the fastest", "same")
    shown = table("After over before; above 1 is faster", ["figure"], columns)
    for own in found:
        old, new = statistics.median(own.before), statistics.median(own.after)
        decode = own.figure.startswith("decode")
        shown.add_row(
            own.figure,
            f"{1e3 * old:.2f}" if decode else f"{own.tokens / old:,.0f}",
            f"{1e3 * new:.2f}" if decode else f"{own.tokens / new:,.0f}",
            "ms a step" if decode else "tokens/s",
            f"{own.ratio:.3f}",
            f"{own.ratios[0]:.2f} to {own.ratios[-1]:.2f}",
            f"{own.fastest:.3f}",
            "yes" if own.same else "NO",
        )
    console.print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--quick", action="store_true", help="512 tokens, fewer rounds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("benchmarks/work"))
    asked = parser.parse_args()
    form = QUICK if asked.quick else FULL
    ids = novel_ids()
    tenth = evicting(form.context // 10)
    console, found = Console(), []
    roots = [asked.before.resolve(), asked.after.resolve()]
    with opened(roots, asked.threads, asked.work.resolve() / "logs") as pair:
        for requests in REQUESTS:
            prompts = [cut(ids, form.context, number) for number in range(requests)]
            for policy in (DENSE, tenth):
                found += serving(pair, policy, prompts, form)
                show(found[-2:], console)
        found.append(training(pair, tenth, cut(ids, form.context, 0), form))
    show(found, console)
    print(json.dumps({own.figure: own.summary() for own in found}))


if __name__ == "__main__":
    main()
