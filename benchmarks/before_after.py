"""Two checkouts of this repository compared: is the new one as fast as the old one?

    python -m benchmarks.before_after ../before .          # some 5 minutes on a quiet machine
    python -m benchmarks.before_after ../before . --quick  # some 1 minute
    python -m benchmarks.before_after ../before . --training --threads 1  # training steps alone

Each checkout runs in a process of its own, with its own sources, and is stopped while the other
measures. They do the same work in turns, each in turn first: prefill and decode of the embedded
model through `Engine`, dense and under h2o at 10 % of the context, for 1 and 8 requests; loss and
gradients of one sequence with hybrid attention; and those of `trainer=distill`, which has a teacher
and adapters, under equal and under measured budgets. Speeds are compared round by round, so a
machine that slows down for a while does so for both. `same` says whether both gave the same tokens
or the same loss, to the last bit, or the same loss of
`trainer=distill` to five digits. `others` is how many cores other programs used meanwhile: above
0.1, trust no ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.draw import table
from benchmarks.process import SCRIPTS, Process
from benchmarks.workload import DENSE, cut, evicting, novel_ids
from llamahome.config import PolicyConfig

REQUESTS = (1, 8)
STEPS = 64  # steps per turn of decoding, one of which compacts
# Measured budgets as shares of their mean, and how many KV heads have them.
LADDER = {0.37: 18, 0.52: 20, 0.74: 18, 0.94: 12, 1.33: 9, 1.9: 6, 2.65: 4, 3.8: 2, 5.3: 1}


@dataclass(frozen=True, kw_only=True)
class Form:
    """Amount of work; `prefills`, `decodes` and `trainings` are rounds."""

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
        before, after: seconds of a step, a prefill or a training step, one figure a round.
        tokens: tokens in that time.
        same: whether both gave the same result.
        others: cores that other programs used meanwhile.
    """

    figure: str
    before: list[float]
    after: list[float]
    tokens: int
    same: bool
    others: float

    @property
    def ratios(self) -> list[float]:
        """Speed after over speed before of each round, in rising order."""
        return sorted(old / new for old, new in zip(self.before, self.after, strict=True))

    @property
    def ratio(self) -> float:
        """Median of the rounds' ratios."""
        return statistics.median(self.ratios)

    @property
    def fastest(self) -> float:
        """Ratio of each side's fastest round, which other programs delayed least."""
        return min(self.before) / min(self.after)


class Pair:
    """Both checkouts, each in a process, in turns."""

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
        """Return the replies of both to one command."""
        return [side.ask(cmd, **arguments) for side in self._sides]

    def compare(
        self, figure: str, tokens: int, rounds: int, cmd: str, **arguments: Any
    ) -> Compared:
        """Time a command on both in turns, after one round that is not counted."""
        took: tuple[list[float], list[float]] = [], []
        same = True
        for number in range(rounds + 1):
            if number == 1:
                started, others = time.perf_counter(), self._others()
            order = (0, 1) if number % 2 else (1, 0)
            replies = {index: self._sides[index].ask(cmd, **arguments) for index in order}
            same &= replies[0].get("digest") == replies[1].get("digest")
            if number:
                took[0].append(replies[0]["seconds"])
                took[1].append(replies[1]["seconds"])
        others = (self._others() - others) / (time.perf_counter() - started)
        return Compared(
            figure=figure, before=took[0], after=took[1], tokens=tokens, same=same, others=others
        )

    def _others(self) -> float:
        """Return the seconds that all cores have worked for neither side (Linux: proc(5))."""
        user, nice, system, _, _, *rest = _ticks(Path("/proc/stat"), 1)[:8]
        sides = (_ticks(Path(f"/proc/{side.pid}/stat"), 13)[:2] for side in self._sides)
        ticks = user + nice + system + sum(rest) - sum(map(sum, sides))
        return ticks / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        for side in self._sides:
            side.close()


def _ticks(file: Path, first: int) -> list[int]:
    """Return the integers of a file's first line, from field `first` on."""
    return [int(field) for field in file.read_text().splitlines()[0].split()[first:]]


@contextmanager
def opened(roots: Sequence[Path], threads: int, logs: Path) -> Iterator[Pair]:
    pair = Pair(roots, threads, logs)
    try:
        yield pair
    finally:
        pair.close()


def changed(policy: PolicyConfig) -> dict[str, Any]:
    """Return the fields that are no defaults; the older checkout may not know a new field."""
    defaults = asdict(PolicyConfig())
    return {key: value for key, value in asdict(policy).items() if value != defaults[key]}


def serving(
    pair: Pair, policy: PolicyConfig, prompts: list[list[int]], form: Form
) -> list[Compared]:
    """Compare prefill and decode of some requests at once under one policy."""
    requests = len(prompts)
    cell = f"{requests} x {form.context:,}, {'dense' if policy == DENSE else '10 %'}"
    pair.both("open", policy=changed(policy), requests=requests, length=form.context)
    work = requests * form.context
    found = [
        pair.compare(f"prefill {cell}", work, form.prefills, "fill", prompts=prompts),
        pair.compare(f"decode {cell}", requests, form.decodes, "decode", steps=STEPS),
    ]
    before, after = (reply["digest"] for reply in pair.both("drop"))
    return [replace(own, same=before == after) for own in found]


def training(pair: Pair, policy: PolicyConfig, prompt: list[int], form: Form) -> list[Compared]:
    """Compare loss and gradients of one sequence, of all weights and of `trainer=distill`."""
    steps = [("train", "training step", policy), ("distill", "distillation step", policy)]
    steps.append(("distill", "distillation step, measured budgets", measured(policy)))
    return [
        pair.compare(
            f"{name} {len(prompt):,}, 10 %",
            len(prompt),
            form.trainings,
            command,
            policy=changed(own),
            prompt=prompt,
        )
        for command, name, own in steps
    ]


def measured(policy: PolicyConfig) -> PolicyConfig:
    """Return a policy with budgets as measured error gives them: many small and few large ones.

    Their mean is that of `policy`. The embedded model has 30 layers of 3 KV heads.
    """
    assert policy.budget is not None
    shares = [share for share, heads in LADDER.items() for _ in range(heads)]
    recent = min(policy.recent, policy.budget // 4)
    least = recent + policy.sink
    pattern: dict[str, int | None] = {
        f"L{at // 3}H{at % 3}": max(least, round(policy.budget * shares[7 * at % len(shares)]))
        for at in range(len(shares))
    }
    return replace(policy, recent=recent, interval=min(policy.interval, recent), pattern=pattern)


def show(found: Sequence[Compared], console: Console) -> None:
    columns = ("before", "after", "ratio", "rounds", "fastest", "same", "others")
    shown = table("Speed after over before: above 1 is faster", ["figure"], columns)
    for own in found:
        old, new = statistics.median(own.before), statistics.median(own.after)
        decode = own.figure.startswith("decode")
        shown.add_row(
            f"{own.figure}, {'ms a step' if decode else 'tokens/s'}",
            f"{1e3 * old:.2f}" if decode else f"{own.tokens / old:,.0f}",
            f"{1e3 * new:.2f}" if decode else f"{own.tokens / new:,.0f}",
            f"{own.ratio:.3f}",
            f"{own.ratios[0]:.2f} - {own.ratios[-1]:.2f}",
            f"{own.fastest:.3f}",
            "yes" if own.same else "NO",
            f"{own.others:.2f}",
        )
    console.print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--quick", action="store_true", help="512 tokens, fewer rounds")
    parser.add_argument("--training", action="store_true", help="training steps alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("benchmarks/work"))
    asked = parser.parse_args()
    form = QUICK if asked.quick else FULL
    ids = novel_ids()
    tenth = evicting(form.context // 10)
    console, found = Console(width=110), []
    roots = [asked.before.resolve(), asked.after.resolve()]
    with opened(roots, asked.threads, asked.work.resolve() / "logs") as pair:
        for requests in () if asked.training else REQUESTS:
            prompts = [cut(ids, form.context, number) for number in range(requests)]
            for policy in (DENSE, tenth):
                found += serving(pair, policy, prompts, form)
                show(found[-2:], console)
        found += training(pair, tenth, cut(ids, form.context, 0), form)
    show(found, console)
    figures = {
        own.figure: asdict(own) | {"ratio": own.ratio, "fastest": own.fastest} for own in found
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
