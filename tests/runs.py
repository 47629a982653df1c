"""Runs of training scripts: what they train, and the one line with which they refuse to."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sfumato.cli.main import script

Known = dict[tuple[str, ...], dict[str, Tensor]]
"""What plain runs trained, by their options."""


def others_slow(rows: Iterable[object], normal: Container[object]) -> list[object]:
    """Return the rows of a parametrised test; those that are not in `normal` are run by hand only."""
    slow = pytest.mark.slow
    return [
        row if row in normal else pytest.param(*(row if isinstance(row, tuple) else (row,)), marks=slow)
        for row in rows
    ]


class Runs:
    """Runs of one script on one model and one folder of images."""

    def __init__(
        self, name: str, places: Sequence[str], short: Sequence[str], outs: Path, known: Known | None = None
    ) -> None:
        """Take what all runs have in common.

        Args:
            name: of the script.
            places: options that name model and data.
            short: other options.
            outs: where each run gets a folder.
            known: plain runs of other tests.
        """
        self.name, self.outs = name, outs
        self._common = [*places, "--output_name", "model", *short]
        self._known = {} if known is None else known

    def arguments(self, name: str, *options: str) -> list[str]:
        return [*self._common, "--output_dir", str(self.outs / name), *options]

    def __call__(self, name: str, *options: str) -> dict[str, Tensor]:
        """Run with these options; return what was trained."""
        assert script(self.name, self.arguments(name, *options)) == 0
        return load_file(self.outs / name / "model.safetensors")

    def plain(self, *options: str) -> dict[str, Tensor]:
        """Return what a run with these options trains, which another test may have found out before."""
        if options not in self._known:
            self._known[options] = self(f"plain{len(self._known)}", *options)
        return self._known[options]

    def refusal(self, capfd: pytest.CaptureFixture[str], *options: str) -> str:
        """Run what must be refused; return the one line that says why."""
        assert script(self.name, self.arguments("refused", *options)) == 2
        return refusal(capfd)


def figures(path: Path) -> list[dict[str, float]]:
    """Return the lines of steps and measurements of a `metrics.jsonl`."""
    return [line for line in _lines(path) if "event" not in line]


def events(path: Path) -> list[dict[str, Any]]:
    """Return the other lines of a `metrics.jsonl`."""
    return [line for line in _lines(path) if "event" in line]


def num_steps(path: Path) -> int:
    """Return how many steps are recorded in a `metrics.jsonl` that is being written, or is not there yet."""
    return path.read_bytes().count(b'"loss":') if path.exists() else 0


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def refusal(capfd: pytest.CaptureFixture[str]) -> str:
    """Return the one line with which a run refused to start; no weight was loaded before it."""
    shown = capfd.readouterr().err
    assert " loading " not in shown
    return error_of(shown)


def error_of(shown: str) -> str:
    """Return the one line of an error in what a run has shown."""
    assert "Traceback" not in shown
    (line,) = (line for line in shown.splitlines() if line.startswith("error: "))
    return line


def differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that are not the same bit for bit."""
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]
