"""Items are made by another thread, in order, at most one ahead; its errors come when their turn does."""

import threading

import pytest

from sfumato.checkpoints.read_ahead import ahead


def test_an_item_is_made_while_the_one_before_is_worked_on_and_no_more_than_that() -> None:
    begun = [threading.Event() for _ in range(4)]
    threads = set()

    def make(item: int) -> int:
        begun[item].set()
        threads.add(threading.get_ident())
        return item * item

    for item, made in ahead(range(4), make):
        assert made == item * item
        assert item == 3 or begun[item + 1].wait(10)
        assert not any(event.is_set() for event in begun[item + 2 :])
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_an_error_comes_when_its_item_s_turn_does_and_nothing_more_is_made() -> None:
    tried, seen = [], []

    def make(item: int) -> int:
        tried.append(item)
        return 1 // (1 - item)

    with pytest.raises(ZeroDivisionError):
        seen += [item for item, _ in ahead(range(9), make) if not seen.append(item)]
    assert seen == [0]
    assert max(tried) <= 2


def test_nothing_is_made_of_nothing_and_a_caller_may_stop() -> None:
    tried: list[int] = []
    assert list(ahead([], tried.append)) == []
    for item, _ in ahead(range(9), tried.append):
        if item == 1:
            break
    assert len(tried) <= 3
