"""Signals: the run saves, says how to go on, and exits as shells and job schedulers expect."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests import processes, tiny
from tests.end_to_end.test_resume import CACHED, WORKERS, arguments, assert_same_weights, metrics, run
from tests.end_to_end.test_resume import images as images
from tests.end_to_end.test_resume import model as model
from tests.runs import num_steps, others_slow

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals to groups of processes are POSIX's")


@pytest.mark.parametrize(
    ("number", "workers", "status"),
    others_slow(
        [(signal.SIGINT, 2, 130), (signal.SIGTERM, 2, 143), (signal.SIGINT, 0, 130), (signal.SIGHUP, 2, 129)],
        [(signal.SIGTERM, 2, 143), (signal.SIGINT, 0, 130), (signal.SIGHUP, 2, 129)],
    ),
)
def test_a_signal_saves_and_names_the_state_to_resume(
    number: signal.Signals, workers: int, status: int, model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    options = [*CACHED["cached"], *WORKERS[workers], "--gradient_accumulation_steps", "2"]
    run(*arguments(model, images, tmp_path / "whole", *options, *WORKERS[0]))
    out, log = tmp_path / "out", tmp_path / "log.txt"
    process = processes.start(
        arguments(model, images, out, *options), log, processes.slow_steps, 0.3 if workers else 0.1
    )
    _wait_for(out / "lora.metrics.jsonl", process.is_alive)
    # A terminal and a launcher signal the whole group, workers included, and sometimes twice.
    for _ in range(2):
        os.killpg(process.pid or 0, number)
    assert processes.finish(process) == status
    shown = log.read_text()
    (said,) = re.findall(
        rf"^{number.name} ended the run: step (\d+) is saved; .*--resume (\S+)$", shown, re.M
    )
    assert "Traceback" not in shown
    assert (out / f"lora-step{int(said[0]):08d}.safetensors").exists()
    run(*arguments(model, images, out, *options, *WORKERS[0], "--resume", said[1]))
    assert_same_weights(tmp_path / "whole", out)
    assert metrics(out) == metrics(tmp_path / "whole")


def test_a_run_under_nohup_goes_on_when_its_terminal_is_closed(
    model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    options = [*CACHED["cached"], *WORKERS[2]]
    out, log = tmp_path / "out", tmp_path / "log.txt"
    meddle = processes.slow_steps_without_hangups
    process = processes.start(arguments(model, images, out, *options), log, meddle, 0.1)
    _wait_for(out / "lora.metrics.jsonl", process.is_alive)
    os.killpg(process.pid or 0, signal.SIGHUP)
    assert processes.finish(process) == 0
    assert "SIGHUP" not in log.read_text()
    assert [row["step"] for row in metrics(out)] == [1, 2, 3, 4, 5, 6]
    assert (out / "lora.safetensors").exists()


def test_a_console_that_goes_away_changes_nothing(model: tiny.TinyFlux, images: Path, tmp_path: Path) -> None:
    options = [*CACHED["cached"], *WORKERS[2]]
    console, out = tmp_path / "pipe", tmp_path / "out"
    os.mkfifo(console)
    process = processes.start(arguments(model, images, out, *options), console, processes.slow_steps, 0.05)
    with console.open() as reader:
        assert "flux_train_network" in reader.read(1000)
    assert processes.finish(process) == 0
    assert [row["step"] for row in metrics(out)] == [1, 2, 3, 4, 5, 6]
    assert (out / "lora.safetensors").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_is_full_behind_console_and_log_file_changes_nothing(
    model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    full, out = Path("/dev/full"), tmp_path / "out"
    options = [*CACHED["cached"], "--console_log_file", str(full), "--max_train_steps", "2"]
    process = processes.start(arguments(model, images, out, *options), full)
    assert processes.finish(process) == 0
    assert (out / "lora.safetensors").exists()


def _wait_for(path: Path, is_alive: object) -> None:
    """Wait until the first step is recorded."""
    until = time.monotonic() + 60
    while not num_steps(path):
        assert time.monotonic() < until
        assert callable(is_alive)
        assert is_alive()
        time.sleep(0.01)
