"""States and what runs note of themselves, with any JSON value at any place."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sfumato.errors import guest_code
from sfumato.training.core.commands import Command, Commands
from sfumato.training.core.control import ControlFile, write_command
from sfumato.training.core.record import RunRecord, read_record, this_process
from sfumato.training.observers.metrics import MetricsFile
from sfumato.training.state.comparison import differences
from sfumato.training.state.resume import RECORD, TENSORS, read_state, state_content
from tests.fuzz import damage
from tests.fuzz.outcomes import outcome


class Trained:
    """As much of a trainable as states ask for."""

    file_holds_all = False

    def __init__(self, value: torch.Tensor) -> None:
        self.tensors = lambda: iter([("value", value)])


def update(value: nn.Parameter) -> Any:
    optimizer = torch.optim.AdamW([value], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    scaler = torch.amp.GradScaler("cpu")
    return SimpleNamespace(stepping=SimpleNamespace(optimizer=optimizer, scheduler=schedule), scaler=scaler)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of a sound state."""
    folder, value = tmp_path_factory.mktemp("states") / "a-state", nn.Parameter(torch.ones(3))
    made = update(value)
    value.sum().backward()
    made.stepping.optimizer.step()
    made.stepping.scheduler.step()
    record = {"seed": 1, "options": {"learning_rate": 0.1, "output_dir": "out"}}
    state_content(Trained(value), made, 3, 1, record).write(folder)  # type: ignore[arg-type]
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def resume(folder: Path) -> None:
    """Read a state, put it back, and do one more step."""
    found = read_state(folder)
    assert min(found.finished, found.seed) >= 0
    assert all(isinstance(line, str) for line in found.differences({"learning_rate": 0.1}))
    value = nn.Parameter(torch.zeros(3))
    made = update(value)
    found.restore(Trained(value), made)  # type: ignore[arg-type]
    value.sum().backward()
    with guest_code("the optimizer failed"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.stepping.optimizer.step()
        made.stepping.scheduler.step()


@given(data=st.data())
def test_damaged_states(state: dict[str, bytes], data: st.DataObject, tmp_path: Path) -> None:
    name = data.draw(st.sampled_from([RECORD, RECORD, RECORD, TENSORS]))
    sound = state[name]
    kinds = damage.damaged_json(json.loads(sound)) if name == RECORD else damage.damaged_bytes(sound)
    folder = tmp_path / "a-state"
    folder.mkdir(exist_ok=True)
    for other, content in (state | {name: data.draw(kinds)}).items():
        (folder / other).write_bytes(content)
    outcome(f"state, {name}", lambda: resume(folder))


def noted() -> RunRecord:
    settings: dict[str, Any] = {"learning_rate": 1e-4, "seed": None, "output_name": "a"}
    images = {"cats": {"im0.png": "1 x"}}
    return RunRecord(
        "train", {}, settings, 5, ".", {"torch": "2.4"}, this_process(), {}, images, saved=("a",)
    )


def written(record: RunRecord, folder: Path) -> Any:
    record.write(folder / "a.run.json")
    files = {"model": {"size": 3, "modified_ns": 7, "sha256": None}}
    return json.loads((folder / "a.run.json").read_bytes()) | {"files": files}


@given(data=st.data())
def test_damaged_records_of_runs(data: st.DataObject, tmp_path: Path) -> None:
    now = noted()
    (tmp_path / "b.run.json").write_bytes(data.draw(damage.damaged_json(written(now, tmp_path))))

    def compare() -> list[str]:
        record = read_record(tmp_path / "b.run.json")
        return [str(record.process.is_gone), *differences(record, now)]

    outcome("record of a run", compare)


METRICS = b"".join(
    json.dumps(line).encode() + b"\n"
    for line in ({"event": "started", "step": 0}, {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25})
)


@st.composite
def damaged_lines(draw: st.DrawFn) -> bytes:
    lines = [draw(damage.damaged_json(json.loads(line))) for line in METRICS.splitlines()]
    return b"\n".join(lines) + b"\n"


@given(content=damage.damaged_bytes(METRICS) | damaged_lines())
def test_damaged_figures_of_an_interrupted_run(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.metrics.jsonl"
    file.write_bytes(content)

    def go_on() -> list[Any]:
        MetricsFile(file, (), finished=1)._file.close()
        return [json.loads(line)["step"] for line in file.read_bytes().splitlines()]

    steps = outcome("metrics.jsonl", go_on)
    assert steps is not None
    assert all(step <= 1 for step in steps)


@given(content=damage.damaged_bytes(b"stop\n", b"save\nsample\n"))
def test_damaged_control_files(content: bytes, tmp_path: Path) -> None:
    control = ControlFile(tmp_path / "a.control")
    (tmp_path / "a.control").write_bytes(content)
    outcome(
        "control file",
        lambda: (write_command(tmp_path / "a.control", Command.STOP), control.pass_on(Commands())),
    )


def test_a_sound_state_goes_on(state: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in state.items():
        (tmp_path / name).write_bytes(content)
    resume(tmp_path)
