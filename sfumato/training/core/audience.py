"""Everybody who watches a run, as one observer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from torch import Tensor

from sfumato.training.core.commands import Command
from sfumato.training.core.events import Ended, ImageMade, Saved, Started, Validated, Warned
from sfumato.training.core.observer import Observer
from sfumato.training.core.plan import Step
from sfumato.training.core.readings import LateReader, Rate, Reading


class Audience(Observer):
    """Tells all observers in turn; it also keeps each step's figures until they can be read."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = list(observers)
        self._late = LateReader()

    def join(self, *observers: Observer) -> None:
        """Let more observers watch; they are told after those who are there."""
        self._observers += observers

    def figures(
        self, step: Step, values: Tensor, paths: list[str], rates: list[Rate], names: Sequence[str] = ()
    ) -> None:
        """Take in a step's figures and tell those of the step before; see `LateReader.exchange`."""
        self._read(self._late.exchange(step, values, paths, rates, names))

    def catch_up(self) -> None:
        """Tell the last step's figures now, at the price of waiting for the device."""
        self._read(self._late.flush())

    def _read(self, reading: Reading | None) -> None:
        if reading is not None:
            self.read(reading)

    def started(self, event: Started) -> None:
        """Tell everybody."""
        for observer in self._observers:
            observer.started(event)

    def after(self, step: Step) -> None:
        """Tell everybody."""
        for observer in self._observers:
            observer.after(step)

    def read(self, reading: Reading) -> None:
        """Tell everybody."""
        for observer in self._observers:
            observer.read(reading)

    def asked(self, command: Command, step: Step) -> None:
        """Tell everybody."""
        for observer in self._observers:
            observer.asked(command, step)

    def image(self, event: ImageMade) -> None:
        """Tell everybody."""
        for observer in self._observers:
            observer.image(event)

    def validated(self, event: Validated) -> None:
        """Tell everybody."""
        for observer in self._observers:
            observer.validated(event)

    def saved(self, event: Saved) -> None:
        """Tell everybody."""
        for observer in self._observers:
            observer.saved(event)

    def warned(self, event: Warned) -> None:
        """Tell everybody."""
        for observer in self._observers:
            observer.warned(event)

    def ended(self, event: Ended) -> None:
        """Tell everybody, even if somebody fails."""
        with ExitStack() as told:
            for observer in reversed(self._observers):
                told.callback(observer.ended, event)
