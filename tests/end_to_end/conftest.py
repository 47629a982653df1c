"""What the tests that run whole programs share: garbage is looked for only in what a test makes."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _garbage_of_other_modules_is_gone() -> Iterator[None]:
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _garbage_is_looked_for_in_what_is_new() -> None:
    """Keep what is there, all imported modules above all, out of the searches for garbage.

    Every run searches several times: half of its time, were everything looked at.
    """
    gc.freeze()
