from __future__ import annotations

import logging

import pytest

from sfumato.training.core.audience import Audience
from sfumato.training.core.events import Ended, Warned
from sfumato.training.core.observer import Observer
from sfumato.training.core.plan import Plan
from sfumato.training.observers.warnings import WarningLog, WarningTeller

logger = logging.getLogger("sfumato.somewhere")


class Notebook(Observer):
    def __init__(self) -> None:
        self.warnings: list[Warned] = []
        self.is_over = False

    def warned(self, event: Warned) -> None:
        self.warnings.append(event)

    def ended(self, event: Ended) -> None:
        self.is_over = True


def test_warnings_are_told_after_the_step_in_which_they_came() -> None:
    notes, log = Notebook(), WarningLog()
    teller = WarningTeller(log, notes)
    with log.listening():
        logger.info("no warning")
        logger.warning("%d images are broken", 2)
        teller.after(Plan(1, 1, 5).step(3))
        logger.warning("the disk is slow")
        teller.tell(3)
    logger.warning("nobody listens any more")
    teller.tell(4)
    assert notes.warnings == [Warned(3, "2 images are broken"), Warned(3, "the disk is slow")]


def test_where_nobody_set_up_logging_warnings_are_printed_as_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("sfumato", None):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    with WarningLog().listening():
        logger.warning("look here")
    assert capsys.readouterr().err == "look here\n"


def test_everybody_hears_of_the_end_even_if_somebody_fails() -> None:
    class Failing(Observer):
        def ended(self, event: Ended) -> None:
            raise OSError("no room")

    first, last = Notebook(), Notebook()
    with pytest.raises(OSError, match="no room"):
        Audience([first, Failing(), last]).ended(Ended(1, "finished"))
    assert first.is_over
    assert last.is_over
