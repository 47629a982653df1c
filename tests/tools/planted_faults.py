"""Do the tests notice a wrong program? Plant faults into a copy of the package, run the nearest tests.

`planted_faults.toml` lists for each module the tests to run and the texts to replace. Libraries are imported
once; each fault is tried in a process forked from there. What no test notices is printed as survived.

    python tests/tools/planted_faults.py              # all: an hour of CPU time or less
    python tests/tools/planted_faults.py diffusion    # modules with this in their name
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_suffix(".toml")
LIBRARIES = (
    "accelerate",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "safetensors.torch",
    "transformers.models.clip.modeling_clip",
    "transformers.models.t5.modeling_t5",
    "transformers.optimization",
)
LIMIT_S = 600
"""A fault may make a program run for ever: that is noticed, too."""


@dataclass(frozen=True)
class Fault:
    """One text of a module that is to be replaced.

    Attributes:
        tests: what should notice, relative to the folder of tests.
        equivalent: why nothing can notice; "" if something must.
    """

    module: str
    old: str
    new: str
    tests: tuple[str, ...]
    equivalent: str = ""

    @property
    def file(self) -> str:
        """The module's file, relative to the root."""
        return f"{self.module.replace('.', '/')}.py"

    def in_text(self, text: str) -> str:
        """Return a module's text with the fault in it; the place must be there once."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.module} has {self.old!r} {text.count(self.old)} times instead of once")
        return text.replace(self.old, self.new)


def faults(path: Path = LIST) -> list[Fault]:
    """Read the list."""
    listed = tomllib.loads(path.read_text("utf-8"))
    return [
        Fault(module, old, new, tuple(entry["tests"]), *equivalent)
        for module, entry in listed.items()
        for old, new, *equivalent in entry["faults"]
    ]


def main() -> int:
    """Try the faults; return 1 if one survived that should not have."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("module", nargs="?", default="", help="part of a module's name")
    wanted = [fault for fault in faults() if parser.parse_args().module in fault.module]
    for library in LIBRARIES:
        importlib.import_module(library)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        _copy_project(root)
        survived = [fault for fault in wanted if not _is_noticed(fault, root)]
    unexpected = [fault for fault in survived if not fault.equivalent]
    killed, rest = len(wanted) - len(survived), len(survived) - len(unexpected)
    print(f"{killed} killed, {len(unexpected)} survived, and {rest} that nothing can notice")
    return 1 if unexpected else 0


def _copy_project(root: Path) -> None:
    for name in ("sfumato", "tests", "sd-scripts"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "end_to_end"))
    shutil.copy(ROOT / "pyproject.toml", root)


def _is_noticed(fault: Fault, root: Path) -> bool:
    """Say and return whether the nearest tests fail with the fault, and only then."""
    file, start = root / fault.file, time.monotonic()
    sound = file.read_text("utf-8")
    if (broken := _first_failure_once(fault, root)) is not None:
        raise SystemExit(f"error: without any fault, {broken} fails; mend that first")
    try:
        file.write_text(fault.in_text(sound), "utf-8")
        noticed = _first_failure(root, fault.tests)
    finally:
        file.write_text(sound, "utf-8")
    word = "survived" if noticed is None else "killed"
    by = fault.equivalent if noticed is None else noticed
    print(f"{word:8} {time.monotonic() - start:5.1f} s  {fault.module}: {fault.new!r}  {by}", flush=True)
    return noticed is not None


_sound: set[tuple[str, ...]] = set()


def _first_failure_once(fault: Fault, root: Path) -> str | None:
    """Run tests on the sound program, unless they ran there already."""
    if fault.tests in _sound:
        return None
    _sound.add(fault.tests)
    return _first_failure(root, fault.tests)


def _first_failure(root: Path, tests: Sequence[str]) -> str | None:
    """Run tests on the copy in a forked process; return the first that fails, or None."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os._exit(_run_tests(root, tests, writer))
    os.close(writer)
    with os.fdopen(reader) as pipe:
        failed = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if status == 0 else failed or f"(status {status})"


def _run_tests(root: Path, tests: Sequence[str], writer: int) -> int:
    """Be the forked process: run pytest on the copy, tell the first failure, return the status."""
    signal.alarm(LIMIT_S)
    sys.dont_write_bytecode = True
    os.chdir(root)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)

    class Teller:
        """Passes on what failed first."""

        @staticmethod
        def pytest_runtest_logreport(report: Any) -> None:
            if report.failed:
                os.write(writer, report.nodeid.encode())

        @staticmethod
        def pytest_collectreport(report: Any) -> None:
            if report.failed:
                os.write(writer, f"(collecting {report.nodeid})".encode())

    options = ["-x", "-q", f"--rootdir={root}", "-p", "no:cacheprovider"]
    known = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins that the libraries brought in
    return int(pytest.main([*options, *known, *(str(root / "tests" / name) for name in tests)], [Teller()]))


if __name__ == "__main__":
    sys.exit(main())
