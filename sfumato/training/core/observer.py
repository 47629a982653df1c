"""Whoever watches a run: the progress bar, trackers, what saves, and observers of your own."""

from __future__ import annotations

from sfumato.training.core.commands import Command
from sfumato.training.core.events import Ended, ImageMade, Saved, Started, Validated, Warned
from sfumato.training.core.plan import Step
from sfumato.training.core.readings import Reading


class Observer:
    """Watches a run. Each method does nothing: write those that you want.

    All are called in the thread that trains, one after the other. An error ends the run as failed.
    """

    def started(self, event: Started) -> None:
        """Get ready: the first step comes next."""

    def after(self, step: Step) -> None:
        """Act on the weights as this step left them. Its figures are not known yet."""

    def read(self, reading: Reading) -> None:
        """Take notice of a step's figures, one step late, so that the device never waits."""

    def asked(self, command: Command, step: Step) -> None:
        """Do after this step what somebody asked for, if it is this observer's."""

    def image(self, event: ImageMade) -> None:
        """Take notice of a preview."""

    def validated(self, event: Validated) -> None:
        """Take notice of a measurement."""

    def saved(self, event: Saved) -> None:
        """Take notice of saved weights."""

    def warned(self, event: Warned) -> None:
        """Take notice of a warning."""

    def ended(self, event: Ended) -> None:
        """Let go of everything: the run is over, however it ended, if it had started."""
