"""The terminal, as a user types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llamahome.cli import app
from tests.cli.terminal import PROGRAM, run


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAHOME_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "command",
    [[], ["generate"], ["chat"], ["models"], ["models", "describe"], ["calibrate"], ["eval"]],
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


def _one_line(result: Result) -> str:
    """Return what a refused command says, once it is known to be a single line."""
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line and "Loading" not in line]
    assert line.startswith("error: ")
    return line


def _with_template(folder: Path, template: str) -> str:
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


REFUSES_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{{ m['content'] }}{% endfor %}"
)


def test_a_template_without_system_prompts_says_so_at_the_start(tiny_folder: Path) -> None:
    model = _with_template(tiny_folder, REFUSES_SYSTEM)
    said = _one_line(run("chat", "--model", model, "--system", "Be brief.", stdin="hi\n"))
    assert "--system='Be brief.'" in said
    assert "System role not supported" in said
    assert said.endswith("leave --system out")
    assert run("chat", "--model", model, "--max-tokens", "1", stdin="hi\n").exit_code == 0


@pytest.mark.parametrize("command", [["generate", "hi"], ["chat"]], ids=["generate", "chat"])
def test_a_model_without_a_template_says_so(tiny_folder: Path, command: list[str]) -> None:
    (tiny_folder / "chat_template.jinja").unlink()
    said = _one_line(run(*command, "--model", str(tiny_folder), stdin="hi\n"))
    assert str(tiny_folder) in said
    assert "it has no chat template" in said
    assert "generate --raw" in said


def test_a_template_that_refuses_any_prompt_is_one_line(tiny_folder: Path) -> None:
    model = _with_template(tiny_folder, "{{ raise_exception('tools only') }}")
    for command in (["generate", "hi"], ["chat"]):
        assert "refuses this conversation: tools only" in _one_line(run(*command, "-m", model))


NO_UTF8 = b"abc \xff\xfe"


def test_a_file_that_is_no_text_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(NO_UTF8)
    for path, words in ((file, "is no UTF-8 text"), (tmp_path, "Is a directory")):
        said = _one_line(run("generate", "hi", "-m", str(tiny_folder), "--file", str(path)))
        assert f"--file={path}: {words}" in said.replace("[Errno 21] ", "")
    said = _one_line(run("generate", "hi", "-m", str(tiny_folder), "--file", "no.txt"))
    assert "--file=no.txt: No such file" in said
    said = _one_line(run("calibrate", "-m", str(tiny_folder), "--text", str(file)))
    assert f"--text={file}: is no UTF-8 text" in said


def test_standard_input_and_arguments_that_are_no_text_are_named(tiny_folder: Path) -> None:
    model = ["-m", str(tiny_folder), "--max-tokens", "1"]
    said = _one_line(CliRunner().invoke(app, ["generate", "-", *model], input=NO_UTF8))
    assert "prompt='-': standard input is no UTF-8 text" in said
    assert "prompt='\\udcff': it is no UTF-8 text" in _one_line(run("generate", "\udcff", *model))
    said = _one_line(run("chat", "--system", "\udcff", *model))
    assert "--system='\\udcff': it is no UTF-8 text" in said
    said = _one_line(CliRunner().invoke(app, ["chat", *model], input=NO_UTF8))
    assert "the message is no UTF-8 text" in said


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
    assert done.stdout.startswith(f"python -m {package} [group=option] [group.key=value]")
    assert "Powered by Hydra" in done.stdout
