"""Items are written by another thread, in order, at most one behind; its errors come back."""

import threading
from collections.abc import Callable, Iterable

import pytest

from sfumato.checkpoints.write_behind import behind


def write_all(write: Callable[[int], object], items: Iterable[int]) -> None:
    with behind(write) as hand_over:
        for item in items:
            hand_over(item)


def test_an_item_is_written_while_the_next_is_made() -> None:
    is_made, written, threads = threading.Event(), [], set()

    def write(item: int) -> None:
        assert item or is_made.wait(10)  # the first is done only when the second has been made
        written.append(item)
        threads.add(threading.get_ident())

    with behind(write) as hand_over:
        hand_over(0)
        assert written == []
        is_made.set()
        hand_over(1)
        assert written[0] == 0
        hand_over(2)
    assert written == [0, 1, 2]
    assert len(threads) == 1
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_error_of_writing_is_raised_and_nothing_more_is_written(count: int) -> None:
    tried = []

    def write(item: int) -> None:
        tried.append(item)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_all(write, range(count))
    assert tried == [0]


def test_what_was_handed_over_is_written_even_if_the_next_cannot_be_made() -> None:
    written = []
    with pytest.raises(ZeroDivisionError):
        write_all(written.append, (1 // (1 - item) for item in range(2)))
    assert written == [1]
