import os
import signal

import pytest

from sfumato.training.run import interrupt
from sfumato.training.run.interrupt import Interrupt


@pytest.mark.parametrize("number", [*interrupt.WISHES, *interrupt.FAREWELLS])
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


@pytest.mark.parametrize("number", interrupt.FAREWELLS)
def test_a_terminal_that_ends_is_no_second_wish_however_often_it_says_so(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupt, "REPEAT_S", -1.0)
    asked = Interrupt()
    with asked.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), number)
        assert asked.signal == signal.SIGTERM


@pytest.mark.parametrize("number", interrupt.FAREWELLS)
def test_the_end_of_a_terminal_is_ignored_where_the_start_said_so(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    asked = Interrupt()
    try:
        with asked.listening():
            os.kill(os.getpid(), number)
            assert not asked.is_asked
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
