"""`llamahome export`, as a user types it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from llamahome.models import ModelManager
from tests.train.engine import QUIET
from tests.train.publish.conftest import save_run
from train.publish.__main__ import app
from train.runs.folder import ADAPTER, MODEL

pytestmark = QUIET
PROGRAM = str(Path(sys.executable).with_name("llamahome"))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the cache and the working directory the test's own."""
    monkeypatch.setenv("LLAMAHOME_CACHE", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def run_export(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        ((), {"config.json", "generation_config.json", "model.safetensors"}),
        (
            ("--format=adapter", "--base-model=owner/base"),
            {"adapter_config.json", "adapter_model.safetensors", "llamahome.json"},
        ),
    ],
)
def test_folders_are_whole(run: Path, arguments: tuple[str, ...], files: set[str]) -> None:
    result = run_export("small", *arguments)
    assert result.exit_code == 0, result.output
    folder = Path("small-adapter" if arguments else "small-merged")
    assert f"exported to {folder.absolute()}" in result.output
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    names = {file.name for file in folder.iterdir()}
    assert names == files | tokenizer | {"README.md", "checksums.json"}
    assert ModelManager().verify(str(folder.absolute())) == len(names) - 1
    for file in folder.glob("*.[jm][sd]*"):
        assert str(run.parent.parent) not in file.read_text()


def test_gguf(run: Path, tmp_path: Path) -> None:
    refused = run_export("small", "--format=gguf")
    assert refused.exit_code == 2
    assert "give --allow-dense" in refused.output
    assert list(Path().iterdir()) == []
    arguments = ("--format=gguf", "--quantization=q8_0", "--allow-dense", "--output=out")
    result = run_export(str(run / MODEL), *arguments)
    assert result.exit_code == 0, result.output
    assert (Path("out") / "small-q8_0.gguf").read_bytes()[:4] == b"GGUF"


REFUSED = {
    "--format='onnx': choose one of merged, adapter, gguf": ("--format=onnx",),
    "--dtype='int8': choose one of float32": ("--dtype=int8",),
    "--dtype=float16 goes with --format merged, not gguf": ("--format=gguf", "--dtype=float16"),
    "--quantization='q4_k': choose one of": ("--format=gguf", "--quantization=q4_k"),
    "--quantization=f16 goes with --format gguf": ("--quantization=f16",),
    "--allow-dense goes with --format gguf": ("--allow-dense",),
    "--public goes with --push": ("--public",),
    "--push='small' is no hub id": ("--push=small",),
    "--base-model='../x' is no hub id": ("--base-model=../x",),
    "exists; remove it, or name another folder": ("--output=.",),
    "HF_HUB_OFFLINE is set": ("--push=owner/small",),
    "is on this machine alone; give --base-model": ("--format=adapter",),
}


@pytest.mark.parametrize("message", REFUSED)
def test_wrong_options_end_in_one_line(run: Path, message: str) -> None:
    result = run_export("small", *REFUSED[message])
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_models_that_are_not_there(run: Path) -> None:
    assert "no model 'smal'" in run_export("smal").output
    shutil.rmtree(run / MODEL)
    unfinished = run_export("small")
    assert unfinished.exit_code == 2
    assert "run small has no model (stopped); give its command again" in unfinished.output


def test_runs_of_older_versions_have_no_adapter(run: Path, base: Path) -> None:
    shutil.rmtree(run / ADAPTER)
    for file in base.glob("*oken*"):
        shutil.copyfile(file, run / MODEL / file.name)
    result = run_export("small", "--format=adapter")
    assert "kept the merged weights alone; resume it with trainer.run_name=small" in result.output


def test_a_failed_export_leaves_nothing(run: Path) -> None:
    """A weight that is not a number shows once the model is computed."""
    file = run / ADAPTER / "adapter_model.safetensors"
    weights = {name: weight * float("nan") for name, weight in load_file(file).items()}
    save_file(weights, file)
    result = run_export("small")
    assert result.exit_code == 2
    assert list(Path().iterdir()) == []


def test_a_run_of_a_run_has_the_base_of_the_first(run: Path, base: Path, tmp_path: Path) -> None:
    config = json.loads((run / "run.json").read_text())
    config["model"]["name"] = "owner/base"
    (run / "run.json").write_text(json.dumps(config))
    second = save_run(tmp_path / "runs", base, "second") / "run.json"
    config["model"]["name"] = "small"
    second.write_text(json.dumps(config))
    assert run_export("second").exit_code == 0
    assert "base_model: owner/base" in Path("second-merged/README.md").read_text()


def test_the_program_has_the_command() -> None:
    done = subprocess.run([PROGRAM, "export", "--help"], capture_output=True, text=True, check=True)
    assert "--quantization" in done.stdout
    assert "llamahome export" in done.stdout
