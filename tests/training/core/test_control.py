from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sfumato.errors import UserError
from sfumato.training.core.commands import Command, Commands
from sfumato.training.core.control import ControlFile, write_command
from sfumato.training.core.run_files import control_for, record_for


@pytest.fixture(autouse=True)
def _log_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("sfumato"), "propagate", True)


def test_commands_are_taken_once_and_the_file_with_them(tmp_path: Path) -> None:
    path, commands = tmp_path / "run.control", Commands()
    write_command(path, Command.STOP)  # an earlier run's
    control = ControlFile(path)
    control.pass_on(commands)
    assert commands.take() == set()
    write_command(path, Command.SAVE)
    write_command(path, Command.SAMPLE)
    control.pass_on(commands)
    assert list(tmp_path.iterdir()) == []
    assert commands.take() == {Command.SAVE, Command.SAMPLE}
    assert commands.take() == set()
    assert not commands.is_stopping


def test_what_nobody_knows_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, commands = tmp_path / "run.control", Commands({Command.SAMPLE: "there are no prompts"})
    control = ControlFile(path)
    path.write_text("stopp\nsave faster sample\n")
    control.pass_on(commands)
    control.pass_on(commands)
    assert commands.take() == {Command.SAVE}
    assert caplog.messages == [
        f"{path}: unknown: stopp, faster; write save, sample, stop",
        "there is nothing to sample: there are no prompts",
    ]


def test_a_file_that_somebody_is_about_to_write_is_left_to_them(tmp_path: Path) -> None:
    path, commands = tmp_path / "run.control", Commands()
    control = ControlFile(path)
    path.touch()
    control.pass_on(commands)
    assert path.exists()
    path.write_text("stop")
    control.pass_on(commands)
    assert commands.is_stopping


@pytest.mark.parametrize(
    "given",
    [
        "v1.5",
        "v1.5.safetensors",
        "v1.5-000002.safetensors",
        "v1.5-step00000003.safetensors",
        "v1.5-step00000003-state",
        "v1.5-state",
        "v1.5.metrics.jsonl",
        "v1.5.config.toml",
        "v1.5.run.json",
        ".",
    ],
)
def test_a_run_is_found_by_its_name_and_by_every_file_that_it_wrote(given: str, tmp_path: Path) -> None:
    record = tmp_path / "v1.5.run.json"
    record.touch()
    assert record_for(tmp_path / given) == record
    assert control_for(record) == tmp_path / "v1.5.control"


def test_a_run_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.run.json").touch()
    with pytest.raises(UserError, match=rf"c is no run: .*one of {tmp_path}/a, {tmp_path}/b$"):
        record_for(tmp_path / "c")
    with pytest.raises(UserError, match="is no run"):
        record_for(tmp_path)
