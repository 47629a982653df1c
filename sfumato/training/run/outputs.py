"""Where a run writes: every kind of name is tried, and the room is measured, before a weight is loaded."""

from __future__ import annotations

from sfumato.checkpoints.atomic import require_disk_space
from sfumato.checkpoints.name_trial import try_file, try_folder
from sfumato.config.run.output.tracking import TrackingConfig
from sfumato.config.run.run import Run
from sfumato.training.core.plan import Plan
from sfumato.training.observers import trackers
from sfumato.training.observers.preview import Previews
from sfumato.training.observers.saving import Names
from sfumato.training.state.resume import try_state

_OTHER_NAME = "shorten or change --output_name, or choose another --output_dir"


def check(
    run: Run, names: Names, plan: Plan, previews: Previews | None, num_bytes: int, project: str
) -> None:
    """Raise UserError unless everything that a run writes can be written.

    Args:
        num_bytes: how much will be saved.
        project: what trackers call such runs unless told otherwise.
    """
    try_folder(names.folder, "choose another --output_dir")
    names.folder.mkdir(parents=True, exist_ok=True)
    for saved in (names.epoch(plan.num_epochs), names.step(plan.num_steps), names.last()):
        (try_file if names.suffix else try_folder)(saved, _OTHER_NAME)
        try_state(names.state(saved), _OTHER_NAME)
    for record in (names.settings(), names.metrics(), names.record(), names.control()):
        try_file(record, _OTHER_NAME, in_place=True)
    if previews is not None:
        try_file(previews.longest_file(names), _OTHER_NAME)
    trackers.try_folder(run[TrackingConfig], project)
    require_disk_space(names.folder, num_bytes, "what this run will save")
