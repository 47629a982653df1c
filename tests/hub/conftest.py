"""A stand-in for the Hub, empty for each test, and a cache of the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import stand_in
from tests.hub.stand_in import Hub


@pytest.fixture(scope="module")
def served() -> Iterator[Hub]:
    with stand_in.serving() as hub:
        yield hub


@pytest.fixture
def empty_hub(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    served.reset()
    stand_in.use(served, tmp_path / "cache", monkeypatch)
    return served


@pytest.fixture
def hub(empty_hub: Hub) -> Hub:
    return empty_hub
