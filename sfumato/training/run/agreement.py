"""What all processes of a run do after a step, because somebody asked one of them for it."""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.training.core.commands import Command, Commands
from sfumato.training.core.control import ControlFile
from sfumato.training.core.distributed import LateVote


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
