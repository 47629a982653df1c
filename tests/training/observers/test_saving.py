import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sfumato.config.run.output.saving import SavingConfig
from sfumato.errors import UserError
from sfumato.training.core.audience import Audience
from sfumato.training.core.events import Ended, Saved
from sfumato.training.core.observer import Observer
from sfumato.training.core.plan import Plan, Step
from sfumato.training.observers import saving
from sfumato.training.observers.saving import Keeping, Rhythm, Saver


@dataclass
class Notes:
    """Writes step numbers in place of weights.

    Attributes:
        copies: whether steps other than the last are written by a thread, once `may_write` is set.
        error: what the thread fails with.
    """

    copies: bool = False
    error: UserError | None = None
    may_write: threading.Event = field(default_factory=threading.Event)
    most: int = 0

    def write(self, path: Path, state: Path | None, step: Step) -> None:
        path.write_text(str(step.number), encoding="utf-8")
        if state is not None:
            state.mkdir()
        self.most = max(self.most, len(list(path.parent.iterdir())))

    def copy(self, path: Path, state: Path | None, step: Step) -> Callable[[], None] | None:
        def later() -> None:
            self.may_write.wait(10)
            if self.error is not None:
                raise self.error
            self.write(path, state, step)

        return later if self.copies else None


@dataclass
class Told(Observer):
    """Notes what was saved."""

    saves: list[tuple[int, str]] = field(default_factory=list)

    def saved(self, event: Saved) -> None:
        assert event.path.read_text() == str(event.step)
        self.saves.append((event.step, event.path.name))


def _saved(config: SavingConfig, plan: Plan) -> list[str]:
    """Return the names of what lies in the folder after a run, however it was written."""
    found = []
    for copies in (False, True):
        names, notes = saving.names_for(config), Notes(copies)
        notes.may_write.set()
        saver = Saver(names, saving.keeping_for(config, plan), plan, notes)
        for step in plan.steps():
            saver.after(step)
        found.append(sorted(path.name for path in names.folder.iterdir()))
        for path in names.folder.iterdir():
            path.rmdir() if path.is_dir() else path.unlink()
    assert found[0] == found[1]
    return found[0]


def test_epochs_steps_and_the_end_are_saved_under_sd_scripts_names(tmp_path: Path) -> None:
    config = SavingConfig(
        output_dir=str(tmp_path), output_name="cat", save_every_n_epochs=1, save_every_n_steps=4
    )
    assert _saved(config, Plan(num_batches=3, group=1, num_steps=9)) == [
        "cat-000001.safetensors",
        "cat-000002.safetensors",
        "cat-step00000004.safetensors",
        "cat-step00000008.safetensors",
        "cat.safetensors",
    ]


def test_old_files_make_room(tmp_path: Path) -> None:
    config = SavingConfig(
        output_dir=str(tmp_path),
        save_every_n_epochs=2,
        save_last_n_epochs=2,
        save_every_n_steps=3,
        save_last_n_steps=5,
    )
    assert _saved(config, Plan(num_batches=2, group=1, num_steps=20)) == [
        "at-step00000015.safetensors",
        "at-step00000018.safetensors",
        "epoch-000006.safetensors",
        "epoch-000008.safetensors",
        "last.safetensors",
    ]


def test_states_go_with_every_save_and_may_be_kept_longer_or_shorter(tmp_path: Path) -> None:
    config = SavingConfig(
        output_dir=str(tmp_path),
        output_name="x",
        save_every_n_epochs=1,
        save_last_n_epochs=3,
        save_last_n_epochs_state=1,
        save_state=True,
    )
    assert _saved(config, Plan(num_batches=1, group=1, num_steps=5)) == [
        "x-000002.safetensors",
        "x-000003.safetensors",
        "x-000004-state",
        "x-000004.safetensors",
        "x-state",
        "x.safetensors",
    ]


def test_a_state_only_at_the_end_is_one_state(tmp_path: Path) -> None:
    config = SavingConfig(
        output_dir=str(tmp_path), save_every_n_epochs=1, save_state_on_train_end=True, output_name="x"
    )
    saved = _saved(config, Plan(num_batches=1, group=1, num_steps=3))
    assert [name for name in saved if name.endswith("-state")] == ["x-state"]


def test_a_ratio_of_epochs_becomes_a_rhythm() -> None:
    plan = Plan(num_batches=1, group=1, num_steps=10)
    assert saving.keeping_for(SavingConfig(save_n_epoch_ratio=4), plan).weights.every_epochs == 2


@pytest.mark.parametrize("keep", [None, 2])
def test_the_count_of_files_is_what_lies_on_the_disk_at_most(keep: int | None, tmp_path: Path) -> None:
    rhythm, plan, notes = Rhythm(1, 2, keep, None if keep is None else 4), Plan(2, 1, 12), Notes()
    names = saving.names_for(SavingConfig(output_dir=str(tmp_path)))
    saver = Saver(names, Keeping(rhythm, rhythm), plan, notes)
    for step in plan.steps():
        saver.after(step)
    assert notes.most <= rhythm.count(plan) <= notes.most + 2


def test_the_run_goes_on_while_a_copy_is_written_and_it_is_announced_when_it_is_there(tmp_path: Path) -> None:
    names, plan = saving.names_for(SavingConfig(str(tmp_path), "x")), Plan(3, 1, 3)
    notes, told = Notes(True), Told()
    saver = Saver(names, Keeping(Rhythm(None, 1), Rhythm(None, 1)), plan, notes, Audience([told]))
    first, second, last = plan.steps()
    saver.after(first)
    assert (told.saves, list(tmp_path.iterdir()), saver.kept) == ([], [], [])
    notes.may_write.set()
    saver.after(second)  # waits for the first, for there is one copy at a time
    assert told.saves == [(1, "x-step00000001.safetensors")]
    saver.after(last)
    assert [step for step, _ in told.saves] == [1, 2, 3, 3]
    assert [path.name for path in saver.kept] == [name for _, name in told.saves]


def test_a_copy_that_cannot_be_written_ends_the_run_at_the_next_step_or_is_told_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names, plan = saving.names_for(SavingConfig(str(tmp_path), "x")), Plan(4, 1, 4)
    notes, told = Notes(True, UserError("the disk is full")), Told()
    notes.may_write.set()
    saver = Saver(names, Keeping(Rhythm(None, 2), Rhythm(None, 2)), plan, notes, Audience([told]))
    one, two, three, _ = plan.steps()
    saver.after(one)
    saver.after(two)
    while not saver.is_settled:
        time.sleep(0.01)
    with pytest.raises(UserError, match="the disk is full"):
        saver.after(three)
    saver.after(two)
    saver.ended(Ended(2, "failed", ()))
    assert caplog.messages == ["the disk is full"]
    assert told.saves == []


def test_what_lies_beside_a_save_is_told_and_removed_with_it(tmp_path: Path) -> None:
    @dataclass
    class Others(Observer):
        others: list[tuple[Path, ...]] = field(default_factory=list)

        def saved(self, event: Saved) -> None:
            self.others.append(event.others)

    @dataclass
    class Beside(Notes):
        def write(self, path: Path, state: Path | None, step: Step) -> None:
            super().write(path, state, step)
            folder(path).mkdir()

    def folder(path: Path) -> Path:
        return path.with_name(f"{path.stem}-words")

    names, plan = saving.names_for(SavingConfig(str(tmp_path), "x")), Plan(3, 1, 3)
    rhythm, told = Rhythm(None, 1, None, 1), Others()
    saver = Saver(
        names,
        Keeping(rhythm, rhythm),
        plan,
        Beside(),
        Audience([told]),
        lambda path: (folder(path), tmp_path / "none"),
    )
    for step in plan.steps():
        saver.after(step)
    assert told.others == [(folder(path),) for path in (*map(names.step, (1, 2, 3)), names.last())]
    assert sorted(tmp_path.glob("*-words")) == sorted(folder(path) for path in saver.kept)
    assert len(saver.kept) == 3


def test_an_output_folder_must_be_given() -> None:
    with pytest.raises(UserError, match="--output_dir is missing"):
        saving.names_for(SavingConfig())


def test_a_save_that_cannot_be_removed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "The process cannot access the file because it is being used")

    monkeypatch.setattr(saving.shutil, "rmtree", refuse)
    keeping = {"save_every_n_epochs": 1, "save_last_n_epochs": 1, "save_state": True}
    config = SavingConfig(output_dir=str(tmp_path), output_name="x", **keeping)  # type: ignore[arg-type]
    saved = _saved(config, Plan(num_batches=1, group=1, num_steps=3))
    both = [f"x{number}{end}" for number in ("-000002", "") for end in ("-state", ".safetensors")]
    assert saved == ["x-000001-state", *both]
    said = (
        f"{tmp_path / 'x-000001-state'} cannot be removed (The process cannot access the file because it is "
    )
    assert any(message.startswith(said) for message in caplog.messages)
