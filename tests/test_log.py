"""Numbers in messages stand with the right word; messages reach the log file, or else the console."""

import logging
from pathlib import Path

import pytest

from sfumato import log
from sfumato.log import counted, plural


@pytest.mark.parametrize(("number", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images")])
def test_a_count_agrees_with_its_noun(number: int, text: str) -> None:
    assert counted(number, "image") == text


def test_what_is_no_plain_s_is_given() -> None:
    assert [counted(n, "batch", "batches") for n in (1, 3)] == ["1 batch", "3 batches"]
    assert [plural(n, "is", "are") for n in (0, 1, 2)] == ["are", "is", "are"]


def test_a_log_file_takes_the_messages_of_one_run_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("première", "second"):
        log.set_up(file=str(tmp_path / "log.txt"))
        logging.getLogger("sfumato").info(text)  # what an earlier run left open would be an error here
    logging.getLogger("sfumato").handlers[0].close()
    lines = (tmp_path / "log.txt").read_text("utf-8").splitlines()
    assert [line.split()[-1] for line in lines] == ["première", "second"]
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_what_a_terminal_would_obey_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up()
    logging.getLogger("sfumato.test").warning("a\x1b[31mb\nc\u3000\udc83 \U0001f408")
    assert capsys.readouterr().err.endswith("a\\x1b[31mb\nc\u3000\\udc83 \U0001f408\n")


def test_messages_that_find_no_room_in_the_log_file_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(file="/dev/full")
    for text in ("first", "second"):
        logging.getLogger("sfumato").info(text)
    logging.getLogger("sfumato").handlers[0].close()
    said, first, second = capsys.readouterr().err.splitlines()
    assert said == "/dev/full: No space left on device; messages are shown here"
    assert [first.split()[-1], second.split()[-1]] == ["first", "second"]
