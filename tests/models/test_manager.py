from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llamahome.models import (
    EMBEDDED_MODEL,
    ModelCorruptError,
    ModelError,
    ModelManager,
    ModelNotFoundError,
    write_checksums,
)


@pytest.fixture
def run_name(manager: ModelManager, tiny_folder: Path) -> str:
    """A finished run in the manager's cache."""
    model = manager.runs_dir / "first-run" / "model"
    shutil.copytree(tiny_folder, model)
    (model.parent / "checkpoint").mkdir()
    write_checksums(model)
    return "first-run"


def test_the_environment_can_name_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMAHOME_CACHE", str(tmp_path / "named"))
    assert ModelManager().runs_dir == tmp_path / "named" / "runs"


def test_the_embedded_model_resolves_by_name(embedded_model_dir: Path) -> None:
    assert (embedded_model_dir / "config.json").is_file()
    assert embedded_model_dir.name == EMBEDDED_MODEL


def test_a_run_resolves_by_its_name(manager: ModelManager, run_name: str) -> None:
    assert manager.resolve(run_name) == manager.runs_dir / run_name / "model"


def test_a_local_folder_resolves_by_absolute_and_relative_path(
    manager: ModelManager, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert manager.resolve(str(tiny_folder)) == tiny_folder
    monkeypatch.chdir(tiny_folder.parent)
    assert manager.resolve("tiny") == manager.resolve("./tiny") == tiny_folder


def test_a_run_takes_precedence_over_a_local_folder(
    manager: ModelManager, run_name: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_folder, tiny_folder.parent / run_name)
    monkeypatch.chdir(tiny_folder.parent)
    assert manager.resolve(run_name) == manager.runs_dir / run_name / "model"


def test_the_error_for_an_unknown_name_says_what_was_tried_and_which_names_are_close(
    manager: ModelManager, run_name: str
) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        manager.resolve("smolm2-135-instruct")
    message = str(caught.value)
    assert "'smolm2-135-instruct'" in message
    assert str(manager.runs_dir) in message
    assert f"Did you mean {EMBEDDED_MODEL}?" in message
    with pytest.raises(ModelNotFoundError, match=f"Did you mean {run_name}"):
        manager.resolve("frist-run")


@pytest.mark.parametrize(
    "name", ["..", "../cache", "../../etc", "/etc", "first-run/../..", "a/../../b", "x\0y", ""]
)
def test_names_that_leave_the_cache_find_and_remove_nothing(
    manager: ModelManager, run_name: str, name: str
) -> None:
    with pytest.raises(ModelNotFoundError):
        manager.resolve(name)
    with pytest.raises(ModelError):
        manager.remove(name)
    assert (manager.runs_dir / run_name / "model").is_dir()


def test_a_revision_needs_a_hub_id(manager: ModelManager, run_name: str) -> None:
    with pytest.raises(ModelError, match=r"model\.revision='main'"):
        manager.resolve(run_name, "main")


def test_verify_finds_a_flipped_bit_in_a_run(manager: ModelManager, run_name: str) -> None:
    assert manager.verify(run_name) > 3
    weights = manager.resolve(run_name) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelCorruptError, match=r"model\.safetensors.*last checkpoint"):
        manager.verify(run_name)


def test_removing_a_run_removes_its_checkpoints(manager: ModelManager, run_name: str) -> None:
    manager.remove(run_name)
    assert not (manager.runs_dir / run_name).exists()
    with pytest.raises(ModelNotFoundError):
        manager.resolve(run_name)


def test_a_users_own_folder_is_never_removed(manager: ModelManager, tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="remove it yourself"):
        manager.remove(str(tiny_folder))
    assert (tiny_folder / "config.json").is_file()


def test_a_run_that_links_out_of_the_cache_is_not_removed(
    manager: ModelManager, tiny_folder: Path
) -> None:
    outside = tiny_folder.parent / "elsewhere"
    shutil.copytree(tiny_folder, outside / "model")
    manager.runs_dir.mkdir(parents=True)
    (manager.runs_dir / "linked").symlink_to(outside)
    with pytest.raises(ModelError, match="outside"):
        manager.remove("linked")
    assert (outside / "model" / "config.json").is_file()


def test_removing_a_missing_model_is_refused(manager: ModelManager) -> None:
    with pytest.raises(ModelNotFoundError, match="nothing to remove"):
        manager.remove("someone/something")


def test_a_hub_model_that_is_not_downloaded_is_not_described(manager: ModelManager) -> None:
    with pytest.raises(ModelNotFoundError, match="not downloaded"):
        manager.describe("someone/something")


def test_list_includes_runs_and_omits_broken_ones(
    manager: ModelManager,
    run_name: str,
    embedded_model_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (manager.cache_dir / "embedded").mkdir()
    (manager.cache_dir / "embedded" / EMBEDDED_MODEL).symlink_to(embedded_model_dir)
    (manager.runs_dir / "broken" / "model").mkdir(parents=True)
    (manager.runs_dir / "unfinished").mkdir()
    assert [(info.name, info.kind) for info in manager.list()] == [
        (EMBEDDED_MODEL, "embedded"),
        (run_name, "run"),
    ]
    assert "broken is left out" in caplog.text
