import os
import signal

import pytest

from sfumato.training import interrupt
from sfumato.training.interrupt import Interrupt


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_a_signal_is_noted_and_one_that_a_launcher_repeats_is_no_second_wish(number: signal.Signals) -> None:
    asked = Interrupt()
    before = signal.getsignal(number)
    with asked.listening():
        assert not asked.is_asked
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert asked.signal == number
    assert signal.getsignal(number) == before


def test_a_second_signal_later_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "REPEAT_S", -1.0)
    with Interrupt().listening():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
