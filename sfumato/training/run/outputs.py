"""Where a run writes: every kind of name is tried, and the room is measured, before a weight is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sfumato.checkpoints.atomic import require_disk_space
from sfumato.checkpoints.name_trial import try_file, try_folder
from sfumato.config.rules.strictness import complain
from sfumato.config.run.output.hub import HubConfig
from sfumato.config.run.output.overwriting import OverwritingConfig
from sfumato.config.run.output.tracking import TrackingConfig
from sfumato.config.run.run import Run
from sfumato.training.core.plan import Plan
from sfumato.training.observers import trackers
from sfumato.training.observers.preview import Previews
from sfumato.training.observers.saving import Names
from sfumato.training.run.session import TrainingSession
from sfumato.training.state.resume import try_state

_MOMENT = re.compile(r"(?:-(?P<epoch>\d{6})|-step(?P<step>\d{8}))?(?P<state>-state)?")
"""What stands behind the name of a run in those of its files and states, but for the suffix."""

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


def check_existing(session: TrainingSession) -> None:
    """Say what the run would write over that another one saved; raise UserError where the run is strict."""
    if session.run.get(OverwritingConfig, OverwritingConfig()).overwrite or not session.processes.is_first:
        return
    found = sorted(_in_the_way(session))
    if found:
        others = f" and {len(found) - 1} more of its files are" if len(found) > 1 else " is"
        line = (
            f"{found[0]}{others} there already, saved by another run under the same name; choose another "
            "--output_name, go on with --resume, or allow it with --overwrite"
        )
        complain(session.run, [line])


def _in_the_way(session: TrainingSession) -> Iterator[Path]:
    """Yield the weights and states that the run would replace; it may replace those that it goes on with."""
    names = session.names
    if session.state is not None and _is_own(session, session.state.folder):
        return
    for path in names.folder.iterdir():
        moment = _moment(path, names)
        if moment is not None and _is_written(session, moment):
            yield path


def _is_own(session: TrainingSession, state: Path) -> bool:
    """Return whether a state is of the run that saved under these names; what is uploaded lies elsewhere."""
    is_there = state.parent.resolve() == session.names.folder.resolve()
    is_uploaded = session.run.get(HubConfig, HubConfig()).resume_from_huggingface
    return (is_there or is_uploaded) and _moment(state, session.names) is not None


def _moment(path: Path, names: Names) -> re.Match[str] | None:
    """Return when a run of that name saved a file or state; None for what is none of its own."""
    stem = names.last().name.removesuffix(names.suffix)
    if not path.name.startswith(stem):
        return None
    rest = path.name[len(stem) :]
    match = _MOMENT.fullmatch(rest.removesuffix(names.suffix))
    is_whole = match is not None and rest.endswith("-state" if match["state"] else names.suffix)
    return match if is_whole else None


def _is_written(session: TrainingSession, moment: re.Match[str]) -> bool:
    """Return whether the run saves at such a moment."""
    plan, keeping = session.plan, session.keeping
    if not (moment["epoch"] or moment["step"]):
        return keeping.saves_last_state or not moment["state"]
    number = int(moment["step"] or int(moment["epoch"]) * plan.steps_per_epoch)
    if not 0 < number <= plan.num_steps or (moment["state"] and not keeping.saves_states):
        return False
    step = plan.step(number)
    weights = keeping.weights
    return weights.saves_step(step) if moment["step"] else weights.saves_epoch(step, plan)
