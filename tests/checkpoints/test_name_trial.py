"""Names are tried by writing, and nothing of the trial stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sfumato.checkpoints.name_trial import try_file, try_folder
from sfumato.errors import UserError


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_name_that_will_do_leaves_no_trace(tmp_path: Path) -> None:
    try_file(tmp_path / "deep" / "er" / "model.safetensors", "")
    try_file(tmp_path / "figures.jsonl", "", in_place=True)
    try_folder(tmp_path / "logs" / "run", "")
    assert left(tmp_path) == []


def test_what_is_there_stays_as_it_is(tmp_path: Path) -> None:
    file, folder = tmp_path / "model.safetensors", tmp_path / "logs"
    file.write_text("weights")
    folder.mkdir()
    try_file(file, "")
    try_file(file, "", in_place=True)
    try_folder(folder, "")
    assert left(tmp_path) == ["logs", "model.safetensors"]
    assert file.read_text() == "weights"


def test_a_run_that_is_killed_while_it_tries_a_name_leaves_nothing_that_looks_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(path: Path, missing_ok: bool = False) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", die)
    with pytest.raises(KeyboardInterrupt):
        try_file(tmp_path / "model.safetensors", "")
    assert left(tmp_path) == [f".model.safetensors.{os.getpid()}.part"]


def test_a_name_that_is_too_long_only_while_it_is_unfinished_is_found(tmp_path: Path) -> None:
    name = "n" * 243 + ".safetensors"
    (tmp_path / name).touch()
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"File name too long; shorten it$") as caught:
        try_file(tmp_path / name, "shorten it")
    assert "n...n" in str(caught.value)
    assert "(255 bytes)" in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 200
    try_file(tmp_path / name, "", in_place=True)
    assert left(tmp_path) == []


def _file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


@pytest.mark.parametrize("in_place", [True, False])
def test_what_is_in_the_way_is_named(in_place: bool, tmp_path: Path) -> None:
    file = _file(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder cannot be written: it is a folder; x"):
        try_file(tmp_path / "folder", "x", in_place=in_place)
    with pytest.raises(UserError, match="model cannot be written: a file is in the way; x"):
        try_file(file / "model", "x", in_place=in_place)
    with pytest.raises(UserError, match="file cannot be written: a file is in the way; x"):
        try_folder(file, "x")
    with pytest.raises(UserError, match="embedded null byte; x"):
        try_file(tmp_path / "a\0b", "x", in_place=in_place)
    assert left(tmp_path) == ["file", "folder"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that takes no files")
def test_a_folder_that_takes_no_files_is_named() -> None:
    with pytest.raises(UserError, match=r"/proc/self/model cannot be written: .*; x"):
        try_file(Path("/proc/self/model"), "x")
    with pytest.raises(UserError, match=r"/proc/self/logs cannot be written: .*; x"):
        try_folder(Path("/proc/self/logs"), "x")
    assert os.path.isdir("/proc/self")
