"""That all processes of a run train the same data by the same options, and do the same after each step."""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.config.public import public_values
from sfumato.data.batches.fingerprint import digest
from sfumato.errors import UserError
from sfumato.training.core.commands import Command, Commands
from sfumato.training.core.control import ControlFile
from sfumato.training.core.distributed import LateVote
from sfumato.training.run.session import TrainingSession
from sfumato.training.state.resume import PLACES


def require_same(session: TrainingSession) -> None:
    """Raise UserError, in every process, if they do not start from the same options and data."""
    if session.processes.world == 1:
        return
    own = {name: digest([repr(value)]) for name, value in _facts(session).items()}
    others = session.processes.of_others([own])
    differing = {
        name for theirs in others for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name)
    }
    if differing:
        raise UserError(
            f"the processes of this run differ in {', '.join(sorted(differing))}; start all of them with the "
            "same options, on the same images and captions"
        )


def _facts(session: TrainingSession) -> dict[str, object]:
    """Return what must be equal; files may lie elsewhere on another machine."""
    options = public_values(session.run)
    told = {f"--{name}": value for name, value in options.items() if name not in PLACES}
    alike = {name: value for name, value in told.items() if not set(str(value)) & set("/\\")}
    return {**alike, **session.data_record}


@dataclass
class Agreement:
    """Asks this process and the others.

    Attributes:
        control: the file to look at; in the first process only.
    """

    commands: Commands
    vote: LateVote
    control: ControlFile | None = None

    def __call__(self) -> list[Command]:
        """Return what all processes are to do now; call it once a step, in all of them."""
        if self.control is not None:
            self.control.pass_on(self.commands)
        asked = self.commands.take()
        votes = self.vote([command in asked for command in Command])
        return [command for command, is_wanted in zip(Command, votes, strict=True) if is_wanted]
