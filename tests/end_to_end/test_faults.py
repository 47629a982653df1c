"""What goes wrong in a long run: one clear line each, and nothing that was done before is lost."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from torch.utils.data import _utils, get_worker_info

from sfumato.caching import store
from sfumato.cli.main import script
from sfumato.data.batches import render as views
from sfumato.training.run import saves
from sfumato.training.update import optimizers
from tests import tiny
from tests.end_to_end.test_resume import CACHED, WORKERS, arguments, assert_same_weights, run
from tests.end_to_end.test_resume import images as images
from tests.end_to_end.test_resume import model as model
from tests.runs import error_of, others_slow

EVERY_STEP = ["--save_every_n_steps", "1", "--save_state"]


def failure(options: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Run what must fail; return its one line."""
    capfd.readouterr()
    assert script("flux_train_network", options) == 2
    return error_of(capfd.readouterr().err)


class _FullDisk(io.FileIO):
    """A file on a disk that has room for a few more bytes."""

    room = 200

    def write(self, data: object) -> int:
        size = memoryview(data).nbytes  # type: ignore[arg-type]
        if size > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= size
        return super().write(data)  # type: ignore[arg-type]


def fill_disk(monkeypatch: pytest.MonkeyPatch, is_full: Callable[[Path], bool]) -> None:
    """Let the disk be full for files that are written under certain names."""
    real = Path.open

    def opened(path: Path, mode: str = "r", *others: object, **named: object) -> object:
        if "w" in mode and is_full(path):
            return io.BufferedWriter(_FullDisk(path, mode))
        return real(path, mode, *others, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.parametrize(
    ("full", "behind"),
    [
        ("lora-step00000003.safetensors", True),
        ("lora-step00000003-state", False),
        pytest.param("lora-step00000003.safetensors", False, marks=pytest.mark.slow),
        pytest.param("lora-step00000003-state", True, marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_fills_up_while_saving_leaves_every_earlier_save(
    full: str,
    behind: bool,
    model: tiny.TinyFlux,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    run(*arguments(model, images, tmp_path / "whole", *CACHED["cached"]))
    with monkeypatch.context() as patch:
        patch.setattr(saves, "WORTH_COPYING_BYTES", 0 if behind else 1 << 40)
        fill_disk(patch, lambda path: full in str(path))
        line = failure(arguments(model, images, out, *CACHED["cached"], *EVERY_STEP), capfd)
    assert re.search(r"is full: \S+ needs [\d,]+ bytes; free some space", line)
    assert not (out / full).exists()
    for step in (1, 2):
        assert load_file(out / f"lora-step{step:08d}.safetensors")
    state = str(out / "lora-step00000002-state")
    run(*arguments(model, images, out, *CACHED["cached"], *EVERY_STEP, "--resume", state))
    assert_same_weights(tmp_path / "whole", out)


@pytest.mark.parametrize("suffix", ["flux.npz", "flux_te.npz"])
def test_a_disk_that_fills_up_while_caching_leaves_what_was_cached(
    suffix: str,
    model: tiny.TinyFlux,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    options = arguments(model, images, tmp_path, *CACHED["cached"])
    with monkeypatch.context() as patch:
        fill_disk(patch, lambda path: "picture_02" in path.name and suffix in path.name)
        assert "is full: picture_02" in failure(options, capfd)
    made = {path: path.stat().st_mtime_ns for path in images.glob(f"*_{suffix}")}
    assert len(made) == 2
    assert not list(images.glob(".*.part*"))
    run(*options)
    assert len(list(images.glob(f"*_{suffix}"))) == 4
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())


def _poison(path: Path) -> None:
    """Make the latents of a cache file not a number; its record still says that it is valid."""
    arrays = store.read(path, store.names(path))
    bad = {
        name: np.full_like(array, np.nan) for name, array in arrays.items() if re.match(r"latents_\d", name)
    }
    assert bad
    store.write(path, {**arrays, **bad})


def test_a_batch_that_is_not_a_number_stops_with_step_files_and_last_good_save(
    model: tiny.TinyFlux,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run(*arguments(model, images, tmp_path / "caches", *CACHED["cached"], "--max_train_steps", "1"))
    (path,) = images.glob("picture_02_*_flux.npz")
    _poison(path)
    out = tmp_path / "out"
    monkeypatch.setattr(saves, "WORTH_COPYING_BYTES", 0)  # what is still being written counts, too
    line = failure(arguments(model, images, out, *CACHED["cached"], *EVERY_STEP), capfd)
    found = re.search(r"step (\d): loss nan, gradient norm nan; .*files: (.*) \((.*)\)", line)
    assert found
    assert found[2] == str(images / "picture_02.png")
    step = int(found[1])
    saved = sorted(out.glob("*.safetensors"))
    assert [file.name for file in saved] == [f"lora-step{n:08d}.safetensors" for n in range(1, step)]
    assert found[3] == (f"the last good save is {saved[-1]}" if saved else "nothing was saved yet")
    assert all(tensor.isfinite().all() for file in saved for tensor in load_file(file).values())


def test_a_batch_that_is_not_a_number_is_skipped_where_that_is_asked_for(
    model: tiny.TinyFlux, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(*arguments(model, images, tmp_path / "caches", *CACHED["cached"], "--max_train_steps", "1"))
    (path,) = images.glob("picture_02_*_flux.npz")
    _poison(path)
    capfd.readouterr()
    run(*arguments(model, images, tmp_path / "out", *CACHED["cached"], *EVERY_STEP, "--on_nonfinite", "skip"))
    image = re.escape(str(images / "picture_02.png"))
    skipped = re.findall(
        rf"step (\d): .* the step is skipped, its files: {image}$", capfd.readouterr().err, re.M
    )
    assert 1 <= len(skipped) <= 2
    for step in map(int, skipped):
        saved = [tmp_path / "out" / f"lora-step{number:08d}.safetensors" for number in (step - 1, step)]
        if step > 1:
            before, after = map(load_file, saved)
            assert all(before[name].equal(after[name]) for name in before)
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "out/lora.safetensors").values())


def test_weights_that_a_step_made_infinite_are_not_saved(
    model: tiny.TinyFlux,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(optimizers, "_NUM_TRIED", 0)  # which would find it before training
    options = [*CACHED["cached"], *EVERY_STEP, "--learning_rate", "3e38"]
    line = failure(arguments(model, images, tmp_path, *options), capfd)
    assert re.search(r"step 1 left \S+ infinite or not a number; lower --learning_rate \(nothing was", line)
    assert not list(tmp_path.glob("*.safetensors"))


def _let_workers_end(monkeypatch: pytest.MonkeyPatch, at_load: int, end: Callable[[], None]) -> None:
    """Let each loading process end when it loads its n-th image."""
    render, count = views.render, [0]

    def dying(*arguments: object) -> object:
        count[0] += 1
        if get_worker_info() is not None and count[0] == at_load:
            end()
        return render(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(views, "render", dying)


def test_a_loading_process_that_is_killed_ends_the_run_with_one_line(
    model: tiny.TinyFlux,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    _let_workers_end(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGKILL))
    line = failure(arguments(model, images, tmp_path, *WORKERS[2]), capfd)
    assert "a process that loads images died" in line
    assert "lower --max_data_loader_n_workers: nothing was saved yet" in line


def test_a_loading_process_that_ends_costs_no_finished_step(
    model: tiny.TinyFlux,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run(*arguments(model, images, tmp_path / "whole"))
    out = tmp_path / "out"
    options = [*WORKERS[2], "--persistent_data_loader_workers"]
    with monkeypatch.context() as patch:
        patch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
        _let_workers_end(patch, 3, lambda: os._exit(0))
        line = failure(arguments(model, images, out, *options), capfd)
    state = out / "lora-step00000004-state"
    assert line.endswith(f"step 4 is saved; to go on, start it again with --resume {state}")
    run(*arguments(model, images, out, "--resume", str(state)))
    assert_same_weights(tmp_path / "whole", out)


@pytest.mark.parametrize("workers", others_slow(WORKERS, [2]))
def test_a_damaged_cache_file_is_one_line_from_workers_too(
    workers: int, model: tiny.TinyFlux, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(*arguments(model, images, tmp_path, *CACHED["cached"], "--max_train_steps", "1"))
    (path,) = images.glob("picture_02_*_flux.npz")
    path.write_bytes(path.read_bytes()[:-40])
    options = [*CACHED["cached"], "--skip_cache_check", *WORKERS[workers]]
    line = failure(arguments(model, images, tmp_path / "out", *options), capfd)
    assert f"{path} is damaged" in line
    assert "delete it and start again" in line
