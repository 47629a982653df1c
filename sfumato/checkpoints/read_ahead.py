"""Slow reading, done by a thread of its own while its caller works on what was read before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(items: Iterable[Item], make: Callable[[Item], Made]) -> Iterator[tuple[Item, Made]]:
    """Yield each item with what `make` made of it, in order; that of the next one is made meanwhile.

    What was made of an item is done with when the next one is asked for: then the one after that is begun.

    Raises:
        Exception: what `make` raised, when its item's turn comes.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reading") as thread:
        last: tuple[Item, Future[Made]] | None = None
        for item in items:
            before, last = last, (item, thread.submit(make, item))
            if before:
                yield before[0], before[1].result()
        if last:
            yield last[0], last[1].result()
