"""How long the readers are tried: a little in every test run, hundreds of thousands of inputs when asked for.

`SFUMATO_FUZZ=long python -m pytest tests/fuzz` does the second. The first draws the same inputs every
time, so that a fault that it finds is found again by everybody.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.fuzz.outcomes import TRIED

IS_LONG = os.environ.get("SFUMATO_FUZZ") == "long"
MAX_GROWTH_BYTES = 2_000_000_000

# A folder of files is made once for all inputs; reading a file takes what the disk wants.
_ANYHOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
_COMMON = settings(
    deadline=None,
    database=None,
    suppress_health_check=_ANYHOW,
    # Inputs are small; to make the one that fails smaller still takes minutes.
    phases=[Phase.explicit, Phase.generate],
)
settings.register_profile("ci", _COMMON, derandomize=True, max_examples=60)
settings.register_profile("long", _COMMON, max_examples=int(os.environ.get("SFUMATO_FUZZ_INPUTS", "20000")))
settings.load_profile("long" if IS_LONG else "ci")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lift the limit of CPU time for long runs; they are chosen by now, so that the mark leaves none out."""
    if IS_LONG:
        for item in items:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="module")
def _memory_stays_small() -> Iterator[None]:
    before = _peak_bytes()
    yield
    assert _peak_bytes() - before < MAX_GROWTH_BYTES


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many inputs each reader was given."""
    if IS_LONG:
        for reader, tally in sorted(TRIED.items()):
            terminalreporter.write_line(
                f"{reader}: {tally.inputs} inputs, {tally.refused} refused, slowest {tally.slowest_s:.2f} s"
            )
        terminalreporter.write_line(f"peak memory {_peak_bytes() / 1e9:.2f} GB")
