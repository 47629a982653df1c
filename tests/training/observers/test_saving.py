from pathlib import Path

import pytest

from sfumato.config.run.output.saving import SavingConfig
from sfumato.errors import UserError
from sfumato.training.core.plan import Plan, Step
from sfumato.training.observers import saving
from sfumato.training.observers.saving import Keeping, Rhythm, Saver


def _saved(config: SavingConfig, plan: Plan) -> list[str]:
    names = saving.names_for(config)

    def save(path: Path, step: Step) -> None:
        path.write_text(str(step.number))

    def save_state(path: Path, saved: Path, step: Step) -> None:
        path.mkdir()

    saver = Saver(names, saving.keeping_for(config, plan), plan, save, save_state)
    for step in plan.steps():
        saver.after(step)
    return sorted(path.name for path in names.folder.iterdir())


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
    rhythm, plan, most = Rhythm(1, 2, keep, None if keep is None else 4), Plan(2, 1, 12), 0
    names = saving.names_for(SavingConfig(output_dir=str(tmp_path)))

    def save(path: Path, _step: Step) -> None:
        nonlocal most
        path.write_text("")
        most = max(most, len(list(tmp_path.iterdir())))

    saver = Saver(names, Keeping(rhythm, rhythm), plan, save, save)
    for step in plan.steps():
        saver.after(step)
    assert most <= rhythm.count(plan) <= most + 2


def test_an_output_folder_must_be_given() -> None:
    with pytest.raises(UserError, match="--output_dir is missing"):
        saving.names_for(SavingConfig())
