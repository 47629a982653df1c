"""Every name that a run will write is tried before a weight is loaded; one line says what will not do."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sfumato.config.run.file import FileConfig
from sfumato.config.run.output.overwriting import OverwritingConfig
from sfumato.config.run.output.saving import SavingConfig
from sfumato.config.run.output.tracking import TrackingConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.sampling.request import Request
from sfumato.training.core.plan import Plan
from sfumato.training.observers import saving
from sfumato.training.observers.preview import PreviewPrompt, PreviewRhythm, Previews
from sfumato.training.run import outputs

LONGEST_OF_NAME = len(".") + len("-step00000004-state") + len(".previous")
"""What is added to the name of a run where that makes the longest name: a state that is being replaced."""


def check(
    out: Path, *, num_bytes: int = 0, previews: bool = False, name: str = "run", **options: str
) -> None:
    saved = SavingConfig(output_dir=str(out), output_name=name, save_model_as=options.pop("kind", "ckpt"))  # type: ignore[arg-type]
    run = Run("", "", [saved, TrackingConfig(**options)])  # type: ignore[arg-type]
    names, prompt = saving.names_for(saved), PreviewPrompt(Request("", seed=2**32 - 1), is_seeded=True)
    shown = Previews(None, PreviewRhythm(1, None, False), [prompt]) if previews else None  # type: ignore[arg-type]
    outputs.check(run, names, Plan(1, 4, 4), shown, num_bytes, "project")


def test_nothing_of_the_trial_stays(tmp_path: Path) -> None:
    check(tmp_path / "out", previews=True, logging_dir=str(tmp_path / "logs"), log_prefix="a", kind="pt")
    check(tmp_path / "out", kind="diffusers")
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]


@pytest.mark.parametrize("kind", ["safetensors", "diffusers"])
def test_the_longest_name_that_can_be_trained_under_is_that_of_the_longest_file(
    kind: str, tmp_path: Path
) -> None:
    longest = {
        "safetensors": len(".-step00000004.safetensors..part") + len(str(os.getpid())),
        "diffusers": LONGEST_OF_NAME,
    }[kind]
    fitting = 255 - max(longest, LONGEST_OF_NAME)
    check(tmp_path, name="n" * fitting, kind=kind)
    with pytest.raises(UserError, match="File name too long; shorten or change --output_name") as caught:
        check(tmp_path, name="n" * (fitting + 1), kind=kind)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_bytes_count_not_letters(tmp_path: Path) -> None:
    check(tmp_path, name="n" * 100)
    with pytest.raises(UserError, match="File name too long"):
        check(tmp_path, name="雪" * 100)


@pytest.mark.parametrize(
    ("in_the_way", "said"),
    [
        ("run-step00000004.ckpt", "it is a folder"),
        ("run-000004.ckpt", "it is a folder"),
        ("run.metrics.jsonl", "it is a folder"),
        ("run.config.toml", "it is a folder"),
        ("run-state", "a file is in the way"),
        ("sample", "a file is in the way"),
    ],
)
def test_what_is_in_the_way_of_a_file_is_named(in_the_way: str, said: str, tmp_path: Path) -> None:
    place = tmp_path / in_the_way
    place.mkdir() if "folder" in said else place.touch()
    with pytest.raises(UserError, match=rf"cannot be written: {said}; .*--output_name"):
        check(tmp_path, previews=True)


def test_folders_that_cannot_be_used_name_their_option(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/out cannot be written: .*--output_dir"):
        check(tmp_path / "file" / "out")
    with pytest.raises(UserError, match=r"cannot be written: .*--logging_dir"):
        check(tmp_path, logging_dir=str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"File name too long; .*--log_prefix"):
        check(tmp_path, logging_dir=str(tmp_path), log_prefix="p" * 250)
    with pytest.raises(UserError, match=r"File name too long; .*--log_tracker_name"):
        check(tmp_path, logging_dir=str(tmp_path), log_tracker_name="p" * 260)
    with pytest.raises(UserError, match="what this run will save needs"):
        check(tmp_path, num_bytes=10**18)


def existing(
    out: Path, *, state: str = "", strict: bool = True, overwrite: bool = False, **options: Any
) -> None:
    """Check a run of 4 steps, of 2 an epoch, for what it would write over."""
    saved = SavingConfig(output_dir=str(out), output_name="run", **options)
    plan = Plan(num_batches=2, group=1, num_steps=4)
    session = SimpleNamespace(
        run=Run("", "", [saved, FileConfig(strict=strict), OverwritingConfig(overwrite)]),
        processes=SimpleNamespace(is_first=True),
        names=saving.names_for(saved),
        keeping=saving.keeping_for(saved, plan),
        plan=plan,
        state=SimpleNamespace(folder=out / state) if state else None,
    )
    outputs.check_existing(cast("Any", session))


@pytest.mark.parametrize(
    ("name", "options", "is_refused"),
    [
        ("run.safetensors", {}, True),
        ("run", {"save_model_as": "diffusers"}, True),
        ("run-state", {}, False),
        ("run-state", {"save_state_on_train_end": True}, True),
        ("run-step00000002.safetensors", {}, False),
        ("run-step00000002.safetensors", {"save_every_n_steps": 2}, True),
        ("run-step00000003.safetensors", {"save_every_n_steps": 2}, False),
        ("run-step00000006.safetensors", {"save_every_n_steps": 2}, False),
        ("run-step00000002-state", {"save_every_n_steps": 2, "save_state": True}, True),
        ("run-000001.safetensors", {"save_every_n_epochs": 1}, True),
        ("run-000002.safetensors", {"save_every_n_epochs": 1}, False),  # the last is saved as run.safetensors
        ("runner.safetensors", {}, False),
        ("run.ckpt", {}, False),
        ("run.metrics.jsonl", {}, False),
    ],
)
def test_what_another_run_saved_is_not_written_over(
    name: str, options: dict[str, Any], is_refused: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).touch()
    existing(tmp_path, overwrite=True, **options)
    existing(tmp_path, strict=False, **options)
    assert ("is there already" in caplog.text) == is_refused
    existing(tmp_path, state="run-step00000001-state", **options)
    if is_refused:
        with pytest.raises(UserError, match=rf"{name} is there already.*--output_name, go on with --resume"):
            existing(tmp_path, **options)
        with pytest.raises(UserError, match="allow it with --overwrite"):
            existing(tmp_path, state="other-state", **options)
    else:
        existing(tmp_path, **options)
