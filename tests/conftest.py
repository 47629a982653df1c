"""What every test can rely on: one thread, and logging as if no program had been started before.

`--quick` leaves out `tests/end_to_end/` and `tests/phantom/`, where whole scripts run, and what has the mark
`whole_model`: it computes with a UNet or a pipeline, a second for each test. What keeps the rest quick is no
list, but a limit for each test, which holds in every run.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

# Tiny models run up to ten times faster on one thread when the machine is busy; subprocesses inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing is downloaded; tests of the Hub bring a stand-in for it.
os.environ["HF_HUB_OFFLINE"] = "1"

WHOLE_SCRIPTS = [Path(__file__).parent / name for name in ("end_to_end", "phantom")]
QUICK_CPU_S = 20
"""What a test elsewhere may take with the processes that it starts. Most take a hundredth of it; the first
one that needs a large library pays for importing it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help="leave out the tests that run whole scripts or models"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path in WHOLE_SCRIPTS and config.getoption("quick") else None


def pytest_configure() -> None:
    """Let the end of a terminal be a signal like any other, also where `nohup` has it ignored."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what computes with whole models, where only quick tests are wanted."""
    if config.getoption("quick"):
        items[:] = [item for item in items if not item.get_closest_marker("whole_model")]


def pytest_collection_finish() -> None:
    """Spare the garbage collector what all tests share: modules and records are most of what it looks at."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    yield from _within_limit(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    yield from _within_limit(item)


def _within_limit(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a test that takes too long for where it lies."""
    before_s = _cpu_s()
    yield
    spent_s = _cpu_s() - before_s
    is_on_phantom_card = item.config.pluginmanager.hasplugin("tests.phantom.card")
    is_whole = not {*item.path.parents}.isdisjoint(WHOLE_SCRIPTS) or item.get_closest_marker("slow")
    is_free = is_on_phantom_card or is_whole
    if spent_s > QUICK_CPU_S and not is_free:
        pytest.fail(
            f"{spent_s:.0f} s of CPU time; a test outside tests/end_to_end/ may take {QUICK_CPU_S}. "
            "Take a smaller model, or move the test there.",
            pytrace=False,
        )


def _cpu_s() -> float:
    """Return the CPU time of this process and its finished children; other programs do not count."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.fixture(autouse=True)
def _logging_is_as_at_first() -> Iterator[None]:
    """Undo what a started script does to the process's logging, in fixtures of wider scope too."""
    _reset_logging()
    yield
    _reset_logging()


def _reset_logging() -> None:
    logger = logging.getLogger("sfumato")
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:] = []
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
    logging.captureWarnings(False)
