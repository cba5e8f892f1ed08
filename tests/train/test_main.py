"""`python -m train` as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.train.waiting import PATIENT_ENV
from train.__main__ import main, quoted_range

REPOSITORY = Path(__file__).parents[2]


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *overrides: str
) -> str:
    """Return the message with which `python -m train` ends, with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["train", *overrides])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.stepz=3", "trainer.stepz is not a config key: did you mean trainer.steps?"),
        ("+trainer.stepz=3", "trainer.stepz is not a config key: did you mean trainer.steps?"),
        ("trainerr.steps=3", "trainerr is not a config key: did you mean trainer?"),
        ("trainer.steps=abc", "trainer.steps=abc"),
        ("trainer.steps=0", "trainer.steps=0 is not allowed: it must be at least 1"),
        ("policy=h3o", "Could not find 'policy/h3o' Available options in 'policy': carried"),
        ("model.name=no/such/model", "no/such/model"),
        ("data.train_file=no.jsonl", "data.train_file='no.jsonl': no such file"),
        ("trainer.steps=[", "error: "),
        (
            "data.train_file=/a=b/c.jsonl",
            """needs quotes of its own, 'data.train_file="/a=b/c.jsonl"'""",
        ),
        ('data.train_file="/a=b/c.jsonl"', "data.train_file='/a=b/c.jsonl': no such file"),
        (
            "trainer.num_workers=4096",
            "trainer.num_workers=4096 with trainer.cpus_per_worker=1",
        ),
    ],
)
def test_a_wrong_override_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_dir: Path,
    override: str,
    expected: str,
) -> None:
    small = (f"model.name={model_dir}", "data.context_length=96")
    said = refused(monkeypatch, capsys, *small, override)
    assert said.startswith("error: ")
    assert expected in said


def test_a_yaml_that_does_not_parse_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "policy" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("budget: [\n")
    said = refused(monkeypatch, capsys, f"--config-dir={tmp_path}", "policy=mine")
    assert f'in "{file}", line 2' in " ".join(said.split())


def test_a_sweep_ends_with_a_table_of_its_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A reason that several runs share is said once."""
    argv = ["train", "-m", f"hydra.sweep.dir={tmp_path}", "trainer.steps=0", "trainer.seed=1,-2"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.err == "error: trainer.steps=0 is not allowed: it must be at least 1\n"
    refusal = "refused: trainer.{} is not allowed: it must be at least {}".format
    assert said.out.splitlines()[-3:] == [
        "run  overrides        steps  held-out loss  tokens/s  state",
        f"-    trainer.seed=1   -      -              -         {refusal('steps=0', 1)}",
        f"-    trainer.seed=-2  -      -              -         {refusal('steps=0', 1)}",
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "search.space is empty: give at least one range"),
        (["search.space.trainer.seed=7"], "search.space.trainer.seed='7' is not allowed"),
        (
            ["search.space.trainer.sed=randint(1,9)"],
            "trainer.sed is not a config key: did you mean",
        ),
        (
            ["search.space.trainer.learning_rate=loguniform(1e-5,1e-3)", "search.grace=900"],
            "search.grace=900: runs of trainer.steps=200 have ended by then",
        ),
        (
            ["search.space.trainer.steps=randint(99,999)", "search.grace=20"],
            "search.space.trainer.steps: search.scheduler=asha compares runs of the same length",
        ),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    overrides: list[str],
    expected: str,
) -> None:
    place = f"trainer.output_dir={tmp_path}/runs"
    assert expected in refused(monkeypatch, capsys, "search=asha", place, *overrides)
    assert not (tmp_path / "runs").exists()


def test_a_search_without_a_scheduler_and_a_sweep_of_searches_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = refused(monkeypatch, capsys, "search.space.trainer.seed=randint(1,9)")
    assert "add search=asha or search=random" in said
    sweep = ("-m", f"hydra.sweep.dir={tmp_path}", "search=asha", "trainer.seed=1,2")
    assert "leave out -m" in refused(monkeypatch, capsys, *sweep)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("search.space.trainer.seed=randint(1,9)", '++search.space.trainer.seed="randint(1,9)"'),
        ("search.space.policy='choice(a)'", "search.space.policy='choice(a)'"),
        ("+search.space.policy=x", "+search.space.policy=x"),
        ("search.samples=3", "search.samples=3"),
        ("trainer.steps=3", "trainer.steps=3"),
    ],
)
def test_a_range_needs_no_quotes_of_hydras(given: str, read: str) -> None:
    assert quoted_range(given) == read


def test_a_search_draws_keys_and_options_of_groups(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Its points are refused for another key, so that nothing starts."""
    search = ["search=random", "search.samples=2", "search.space.policy=choice(window)"]
    rates = "search.space.trainer.learning_rate=uniform(1,2)"
    place = f"trainer.output_dir={tmp_path}/runs"
    argv = ["train", *search, rates, place, "search.space.trainer.steps=choice(0)"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.err.count("error: trainer.steps=0") == 1
    assert not (tmp_path / "runs").exists()
    rows = said.out.splitlines()[-2:]
    assert len(set(rows)) == 2
    assert all(re.search(r"trainer\.learning_rate=1\.\d+", row) for row in rows)


def test_help_imports_nothing_that_trains() -> None:
    """Torch and Ray take seconds."""
    code = "import sys, train.__main__; assert not {'torch', 'ray', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


@pytest.mark.ray
@pytest.mark.timeout(1800)  # it starts a Ray of its own, which takes minutes on a busy machine
def test_a_sweep_trains_its_runs_and_writes_nothing_here(
    model_dir: Path, chats: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "train", "-m"),
            f"hydra.sweep.dir={tmp_path}/sweep",
            f"model.name={model_dir}",
            f"data.train_file={chats}",
            "data.eval_file=null",
            "data.context_length=128",
            "policy=h2o",
            "policy.budget=24",
            "policy.recent=12",
            "policy.interval=8",
            "tracking=disabled",
            "trainer.num_workers=1",
            "trainer.steps=2",  # a sweep of one: every run starts a Ray of its own
            f"trainer.output_dir={tmp_path}/runs",
        ],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **PATIENT_ENV},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "held-out loss" in finished.stdout
    assert list(here.iterdir()) == []
    sweep, run = sorted((tmp_path / "runs").iterdir())
    assert run.name == f"{sweep.name}-01"
    assert f"model in {run}/model" in finished.stdout
    assert finished.stdout.splitlines()[-1] == f"  python -m serve model.name={run}/model"
    assert (sweep / "sweep.txt").read_text() in finished.stdout
    assert (sweep / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert f"\n{run.name}  -          2/2    " in finished.stdout
    AutoModelForCausalLM.from_pretrained(run / "model")
    assert (tmp_path / "sweep" / "multirun.yaml").exists()
