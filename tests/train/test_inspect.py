"""`llamahome data inspect`: figures and rows of the data that a run would train on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from llamahome.config import checkout
from train import inspect

PROGRAM = str(Path(sys.executable).with_name("llamahome"))


def shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> str:
    monkeypatch.setattr(sys, "argv", ["inspect", *arguments])
    inspect.main()
    return capsys.readouterr().out


def figure(output: str, name: str) -> list[str]:
    """Return the training and the held-out figure of a row of the table."""
    found = re.search(rf"{re.escape(name)} +│ +(\S.*?) +│ +(\S.*?) +│", output)
    assert found, output
    return [found[1], found[2]]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Four chats of 33 tokens each, one of 633, and a broken line."""
    chats = [
        {
            "messages": [
                {"role": "user", "content": "?" * (600 if i == 4 else 0) + f"Say {i}"},
                {"role": "assistant", "content": f"It is {i}."},
            ]
        }
        for i in range(5)
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(chat) + "\n" for chat in chats) + "{broken\n")
    return file


def test_figures_and_rows_are_those_of_a_run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_dir: Path,
    mine: Path,
) -> None:
    small = (f"model.name={model_dir}", "data.batching=padding", "data.context_length=64")
    held_out = f"data.eval_file={mine}"
    said = shown(monkeypatch, capsys, str(mine), *small, "data.max_bad_records=2", held_out)
    tokens = len("<|user|>Say 0") + 1 + len("<|assistant|>It is 0.") + 1
    answer = len("It is 0.") + 1
    assert figure(said, "records") == ["5", "5"]
    assert figure(said, "tokens of a record: median") == [str(tokens)] * 2
    assert figure(said, "longest") == [str(tokens + 600)] * 2
    assert figure(said, "longer than 64 tokens") == ["1", "1"]
    assert figure(said, "nothing to learn in the first 64") == ["1", "1"]
    assert figure(said, "rows after padding") == ["4", "4"]
    assert figure(said, "their tokens") == [str(4 * tokens)] * 2
    assert figure(said, "tokens left out") == [str(tokens + 600)] * 2
    share = f"{4 * answer} ({answer / tokens:.0%})"
    assert figure(said, "learned tokens") == [share, share]
    assert said.count("skipped: ") == 2
    assert f"skipped: {mine}:6: not JSON" in said
    assert re.search(r"<\|user\|>Say \d<eos><\|assistant\|>⟦It is \d\.<eos>⟧\n", said)


def test_a_file_alone_gives_its_own_held_out_records(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_dir: Path,
    mine: Path,
) -> None:
    small = (f"model.name={model_dir}", "data.max_bad_records=1", "data.context_length=700")
    assert figure(shown(monkeypatch, capsys, str(mine), *small), "records") == ["4", "1"]


def test_learned_tokens_are_green_in_a_terminal(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = list(byte_tokenizer.encode("ask answer"))
    row = {"input_ids": ids, "labels": [-100] * 4 + ids[4:]}
    text = inspect.marked(row, byte_tokenizer, in_colour=True)
    assert text.plain == "ask answer"
    assert [(span.start, span.end, span.style) for span in text.spans] == [
        (0, 4, "dim"),
        (4, 10, "bold green"),
    ]


def test_a_long_row_is_shown_in_part(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = list(byte_tokenizer.encode("a" * 5000))
    half = {"input_ids": ids, "labels": [-100] * 2500 + ids[2500:]}
    shortened = inspect.marked(half, byte_tokenizer, in_colour=False).plain
    run = f"{'a' * 300} … 1,900 characters … {'a' * 300}"
    assert shortened == f"{run}⟦{run}⟧"
    striped = {"input_ids": ids, "labels": [-100, 1] * 2500}
    shown = inspect.marked(striped, byte_tokenizer, in_colour=False).plain
    assert shown.endswith("… 8,000 characters")
    assert len(shown) < 2100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.jsonl", "b.jsonl"], "'b.jsonl': one file at a time; give a folder or a pattern"),
        (["no.jsonl"], "data.train_file='no.jsonl': no such file"),
        (["data.formt=chat"], "data.formt is not a config key: did you mean data.format?"),
        (["data=["], "error: "),
    ],
)
def test_a_mistake_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_dir: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["inspect", f"model.name={model_dir}", *arguments])
    with pytest.raises(SystemExit) as left:
        inspect.main()
    assert left.value.code == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert message in said.err


def test_the_terminals_command(model_dir: Path, mine: Path) -> None:
    command = [PROGRAM, "data", "inspect", str(mine), f"model.name={model_dir}"]
    done = subprocess.run(
        [*command, "data.max_bad_records=1"],
        cwd=checkout(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert figure(done.stdout, "records") == ["4", "1"]
    helped = subprocess.run([*command[:3], "--help"], capture_output=True, text=True, check=True)
    assert helped.stdout.startswith("llamahome data inspect [FILE]")
