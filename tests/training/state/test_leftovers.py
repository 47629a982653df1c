"""What a killed run left behind goes with the next run of its name, and what is another's stays."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from sfumato.training.core.record import ProcessRecord, RunRecord
from sfumato.training.observers.saving import Names
from sfumato.training.state import leftovers

NOBODY = 99_999_999
FILES = (
    f".lora-step00000002.safetensors.{NOBODY}.part",
    f".lora.safetensors.{NOBODY}.part.safetensors",
    f".lora.metrics.jsonl.{NOBODY}.part",
    f"sample/.lora_e000001_00.png.{NOBODY}.part",
)
STATES = {
    ".lora-step00000002-state.part": False,
    ".lora-000001-state.previous": False,
    ".lora-state.part": True,
    ".lora-step00000004-state.previous": True,
    ".lora-b-step00000002-state.part": True,
}
"""Whether each has to stay: as the last that is left of its state, or as another run's."""


def killed(folder: Path, host: str) -> Names:
    """Leave what a run of that machine left that was killed; return its names."""
    for name in ("sample", *STATES, "lora-000001-state"):
        (folder / name).mkdir()
    for name in FILES:
        (folder / name).write_bytes(b"half")
    (folder / f".other.safetensors.{NOBODY - 1}.part").write_bytes(b"another's")
    (folder / ".lora-state.part" / "train_state.json").write_text("{}", "utf-8")
    (folder / ".lora-step00000004-state.previous" / "train_state.json").write_text("{}", "utf-8")
    names = Names(folder, "lora", ".safetensors")
    process = ProcessRecord(host, NOBODY, 1.0)
    RunRecord("x", {}, {}, 1, "", {}, process, {}, {}).write(names.record())
    return names


def test_all_that_a_killed_run_of_this_machine_left_goes_at_once(tmp_path: Path) -> None:
    names = killed(tmp_path, platform.node())
    leftovers.clear(names)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob(".*")}
    stays = {name for name, is_kept in STATES.items() if is_kept}
    assert left == {f".other.safetensors.{NOBODY - 1}.part", *stays}


@pytest.mark.parametrize("host", ["another machine", None])
def test_what_may_be_another_machines_stays(host: str | None, tmp_path: Path) -> None:
    names = killed(tmp_path, host or "")
    if host is None:
        names.record().unlink()
    before = sorted(tmp_path.rglob("*"))
    leftovers.clear(names)
    assert sorted(tmp_path.rglob("*")) == before
