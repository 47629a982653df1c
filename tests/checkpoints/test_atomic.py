"""A crash, a full disk or a kill never leaves a broken file under the final name."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sfumato.checkpoints import atomic
from sfumato.checkpoints.atomic import atomic_file, clear_unfinished, rename, require_disk_space
from sfumato.checkpoints.tensors import LazyTensor, write_tensors
from sfumato.errors import UserError

ROOT = Path(__file__).parents[2]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(2)})
    before = path.read_bytes()

    def fill_up() -> torch.Tensor:
        raise OSError(errno.ENOSPC, "No space left on device")

    tensors = {"a": torch.zeros(1000), "b": LazyTensor(torch.float32, (10,), fill_up)}
    with pytest.raises(UserError, match=r"is full: x\.safetensors needs 4,\d+ bytes") as caught:
        write_tensors(path, tensors)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_only_when_flushed_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match="is full"):
        write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)})
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(2)})
    before = path.read_bytes()
    script = (
        "import sys, time, torch\n"
        "from pathlib import Path\n"
        "from sfumato.checkpoints.tensors import LazyTensor, write_tensors\n"
        "def wait():\n    print('writing', flush=True)\n    time.sleep(60)\n"
        "tensors = {'a': torch.zeros(100000), 'b': LazyTensor(torch.float32, (1,), wait)}\n"
        "write_tensors(Path(sys.argv[1]), tensors)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == before


def test_what_a_killed_process_left_is_removed_by_the_next_save(tmp_path: Path) -> None:
    old, recent = tmp_path / ".x.bin.1.part", tmp_path / ".x.bin.2.part"
    for leftover in (old, recent):
        leftover.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    with atomic_file(tmp_path / "x.bin") as file:
        file.write(b"whole")
    assert sorted(file.name for file in tmp_path.iterdir()) == [recent.name, "x.bin"]


NOBODY = 99_999_999
"""A number that no process has."""


def test_what_is_a_day_old_and_nobodys_goes_whatever_its_name(tmp_path: Path) -> None:
    names = {
        f".gone.npz.{NOBODY}.part": 90_000,
        f".gone.{NOBODY}.part.safetensors": 90_000,
        f".recent.npz.{NOBODY}.part": 80_000,
        f".alive.npz.{os.getpid()}.part": 90_000,
        ".x-state.part": 90_000,
        f"visible.{NOBODY}.part": 90_000,
    }
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / f".folder.{NOBODY}.part").mkdir()
    names[f".folder.{NOBODY}.part"] = 90_000
    for name, age_s in names.items():
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    with atomic_file(tmp_path / "x.bin") as file:
        file.write(b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"x.bin", *list(names)[2:6]}
    clear_unfinished(tmp_path, gone=NOBODY)
    assert {path.name for path in tmp_path.iterdir()} == {"x.bin", *list(names)[3:6]}


class Windows:
    """The module `os` of a system on which somebody has files open for a while."""

    name = "nt"

    def __init__(self, num_refusals: int) -> None:
        self.left = num_refusals

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def replace(self, source: Path, target: Path) -> None:
        self.left -= 1
        if self.left >= 0:
            raise PermissionError(13, "Access is denied")
        os.replace(source, target)


@pytest.mark.parametrize("is_folder", [False, True])
def test_names_that_somebody_has_open_on_windows_are_waited_for(
    is_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(atomic, "time", SimpleNamespace(sleep=waits.append, time=time.time))
    monkeypatch.setattr(atomic, "os", Windows(3))
    source = tmp_path / "unfinished"
    source.mkdir() if is_folder else source.write_bytes(b"new")
    rename(source, tmp_path / "done")
    assert [path.name for path in tmp_path.iterdir()] == ["done"]
    assert waits == [0.05, 0.1, 0.2]
    monkeypatch.setattr(atomic, "os", Windows(99))
    with (
        pytest.raises(UserError, match=r"x.bin cannot be written: Access is denied"),
        atomic_file(tmp_path / "x.bin"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["done"]
    assert sum(waits[3:]) == pytest.approx(1.55)


def test_what_can_be_made_again_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    for is_flushed in (False, True):
        with atomic_file(tmp_path / "x.bin", is_flushed=is_flushed) as file:
            file.write(b"whole")
        assert len(flushed) == (2 if is_flushed else 0)  # the file and its folder
    assert (tmp_path / "x.bin").read_bytes() == b"whole"


def test_missing_folders_are_made_and_a_file_in_their_place_is_named(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "new" / "x.bin") as file:
        file.write(b"x")
    with (
        pytest.raises(UserError, match="cannot be written"),
        atomic_file(tmp_path / "new" / "x.bin" / "y") as file,
    ):
        file.write(b"y")


def test_too_little_space_is_noticed_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 5_000_000_000

    def disk_usage(path: Any) -> Usage:
        assert Path(path).is_dir()
        return Usage()

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    require_disk_space(tmp_path / "not" / "yet", 4_000_000_000, "saving")
    with pytest.raises(UserError, match=r"5\.00 GB free, but saving needs 6\.00 GB"):
        require_disk_space(tmp_path / "not" / "yet", 6_000_000_000, "saving")


@pytest.mark.parametrize("name", [".", "folder"])
def test_a_folder_is_not_written_over(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="it is a folder; name a file"):
        write_tensors(Path(name), {"a": torch.ones(2)})
