from __future__ import annotations

from pathlib import Path

import pytest

from llamahome.models.folders import (
    build_once,
    finished_folders,
    is_folder_name,
    remove_folder,
)


def test_a_failed_build_leaves_no_finished_folder(tmp_path: Path) -> None:
    def build(partial: Path) -> None:
        partial.mkdir()
        (partial / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once(tmp_path / "model", build)
    assert not (tmp_path / "model").exists()
    assert finished_folders(tmp_path) == []


def test_a_build_finds_what_an_earlier_one_left(tmp_path: Path) -> None:
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "first").write_text("1")

    build_once(tmp_path / "model", lambda partial: (partial / "second").touch())
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["first", "second"]


def test_a_folder_that_exists_is_not_built_again(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()

    def build(partial: Path) -> None:
        raise AssertionError("built again")

    build_once(tmp_path / "model", build)


def test_a_stale_folder_is_built_anew(tmp_path: Path) -> None:
    model = tmp_path / "model"
    for version in ("1", "2", "2"):

        def build(partial: Path, version: str = version) -> None:
            partial.mkdir()
            (partial / f"version-{version}").touch()

        def stale(folder: Path, version: str = version) -> bool:
            return not (folder / f"version-{version}").exists()

        build_once(model, build, stale=stale)
        assert [path.name for path in model.iterdir()] == [f"version-{version}"]


def test_removal_includes_the_partial_folder(tmp_path: Path) -> None:
    for name in ("model", "model.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    assert remove_folder(tmp_path / "model")
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    assert not remove_folder(tmp_path / "model")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../a", "/a", "a\\b", "a\0b"])
def test_names_that_could_escape_their_folder_are_refused(name: str) -> None:
    assert not is_folder_name(name)


@pytest.mark.parametrize("name", ["run", "run-1.5", "Ünïcode", "a..b"])
def test_plain_names_are_folder_names(name: str) -> None:
    assert is_folder_name(name)
