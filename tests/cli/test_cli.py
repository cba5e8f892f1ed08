"""The terminal, as a user types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.terminal import PROGRAM, run


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAHOME_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "command",
    [[], ["generate"], ["chat"], ["models"], ["models", "describe"]],
    ids=" ".join,
)
def test_every_command_explains_itself(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_is_instant_without_torch_and_ray() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from llamahome.cli import app;"
        "CliRunner().invoke(app, ['--help']); print({'torch', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_generate_streams_an_answer_and_reports_memory(tiny_folder: Path) -> None:
    long = "word " * 60
    result = run(
        "generate", long, "--model", str(tiny_folder), "--budget", "64", "--max-tokens", "8"
    )
    assert result.exit_code == 0, result.output
    assert "+ 8 tokens" in result.stderr
    assert "evicted" in result.stderr
    assert " 0 evicted" not in result.stderr


def test_generate_reads_standard_input_and_a_file(tiny_folder: Path, tmp_path: Path) -> None:
    document = tmp_path / "doc.txt"
    document.write_text("x" * 100)
    arguments = ["--model", str(tiny_folder), "--max-tokens", "1", "--raw"]
    short = run("generate", "-", *arguments, stdin="abcd")
    assert "[4 + 1 tokens" in short.stderr
    longer = run("generate", "-", *arguments, "--file", str(document), stdin="abcd")
    assert "[106 + 1 tokens" in longer.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "3"], "policy.budget=3 is not allowed"),
        (["--policy", "best"], "policy.name='best' is not allowed"),
        (["--temperature", "-1"], "temperature=-1.0"),
        (["--max-tokens", "9000"], "max_tokens=9000"),
        (["--dtype", "int3"], "model.dtype='int3'"),
        (["--model", "nobody"], "no model 'nobody'"),
    ],
)
def test_a_mistake_is_one_clear_line(tiny_folder: Path, arguments: list[str], message: str) -> None:
    result = run("generate", "hi", "--model", str(tiny_folder), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_chat_keeps_the_conversation_until_reset(tiny_folder: Path) -> None:
    result = run(
        "chat",
        "--model",
        str(tiny_folder),
        "--max-tokens",
        "3",
        "--temperature",
        "0",
        stdin="hello\nhello\n/reset\nhello\n/exit\n",
    )
    assert result.exit_code == 0, result.output
    prompts = [
        int(line.split("[")[1].split(" +")[0])
        for line in result.output.splitlines()
        if " tokens, " in line
    ]
    assert len(prompts) == 3
    assert prompts[1] > prompts[0] == prompts[2]


def test_chat_goes_on_after_a_prompt_that_is_too_long(tiny_folder: Path) -> None:
    result = run(
        "chat", "--model", str(tiny_folder), "--max-tokens", "2", stdin=f"{'x' * 3000}\nhi\n"
    )
    assert result.exit_code == 0
    assert "the context holds 2048" in result.stderr
    assert "+ 2 tokens" in result.output


def test_models_describe_verify_and_remove(tiny_folder: Path) -> None:
    described = run("models", "describe", str(tiny_folder), "--budget", "128")
    assert "2 layers, 2 KV heads of 16 for 4" in described.output
    assert "128 entries" in described.output
    unverified = run("models", "verify", str(tiny_folder))
    assert unverified.exit_code == 2
    assert "checksum" in unverified.stderr
    refused = run("models", "remove", str(tiny_folder), "--yes")
    assert refused.exit_code == 2
    assert (tiny_folder / "config.json").is_file()
    assert run("models", "remove", str(tiny_folder), stdin="n\n").exit_code == 1


@pytest.mark.parametrize("package", ["train", "serve"])
def test_train_and_serve_hand_over_to_hydra(package: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [PROGRAM, package, "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "Powered by Hydra" in done.stdout
