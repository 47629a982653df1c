"""Ctrl-C and SIGTERM: the run saves, says how to go on, and exits as shells and job schedulers expect."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests import processes, tiny
from tests.test_resume_end_to_end import CACHED, WORKERS, arguments, assert_same_weights, metrics, run
from tests.test_resume_end_to_end import model as model
from tests.test_resume_end_to_end import pictures as pictures

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals to groups of processes are POSIX's")


@pytest.mark.parametrize(
    ("number", "workers", "status"),
    [(signal.SIGINT, 2, 130), (signal.SIGTERM, 2, 143), (signal.SIGINT, 0, 130)],
)
def test_a_signal_saves_and_names_the_state_to_resume(
    number: signal.Signals, workers: int, status: int, model: tiny.TinyFlux, pictures: Path, tmp_path: Path
) -> None:
    options = [*CACHED["cached"], *WORKERS[workers], "--gradient_accumulation_steps", "2"]
    run(*arguments(model, pictures, tmp_path / "whole", *options, *WORKERS[0]))
    out, log = tmp_path / "out", tmp_path / "log.txt"
    process = processes.start(
        arguments(model, pictures, out, *options), log, processes.slow_steps, 0.3 if workers else 0.1
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
    run(*arguments(model, pictures, out, *options, *WORKERS[0], "--resume", said[1]))
    assert_same_weights(tmp_path / "whole", out)
    assert metrics(out) == metrics(tmp_path / "whole")


def _wait_for(path: Path, is_alive: object) -> None:
    """Wait until the first step is recorded."""
    until = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < until
        assert callable(is_alive)
        assert is_alive()
        time.sleep(0.01)
