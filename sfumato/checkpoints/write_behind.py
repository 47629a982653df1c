"""Slow writing, done by a thread of its own while its caller makes what is to be written next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


@contextmanager
def behind(write: Callable[[Item], object]) -> Iterator[Callable[[Item], None]]:
    """Yield a function that has `write` take an item in the background, once it has taken the one before.

    So two items are alive at most: one that is being written and one that is being made. When the block ends,
    everything is written.

    Raises:
        Exception: what `write` raised, from the next call or from the end of the block.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="writing") as thread:
        last: Future[object] | None = None

        def hand_over(item: Item) -> None:
            nonlocal last
            if last:
                last.result()
            last = thread.submit(write, item)

        yield hand_over
        if last:
            last.result()
