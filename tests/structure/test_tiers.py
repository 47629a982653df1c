"""Where tests lie: whole scripts run in tests/end_to_end/, the rest mirrors the package and is quick."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "sfumato"
ACROSS = {"benchmarks", "compat", "docs", "end_to_end", "fuzz", "golden", "parity", "phantom", "structure"}
"""Folders of tests that are about more than one part of the package."""

STARTS_SCRIPTS = {"sfumato.cli.main", "tests.runs", "tests.processes"}
MAY_START_SCRIPTS = ("end_to_end", "phantom", "cli", "fuzz", "golden", "runs.py", "processes.py")
"""Besides the first, and the phantom card: tests of the command line itself, and of the numbers that tools on
small files give."""


def imported(file: Path) -> set[str]:
    """Return the modules that a file imports, by their full names."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def starting_scripts(folder: Path) -> list[str]:
    """Return the files of a folder of tests that start scripts where only quick tests belong."""
    files = {file.relative_to(folder): file for file in sorted(folder.rglob("*.py"))}
    return [
        place.as_posix()
        for place, file in files.items()
        if place.parts[0] not in MAY_START_SCRIPTS and imported(file) & STARTS_SCRIPTS
    ]


def test_scripts_run_in_end_to_end_tests_alone() -> None:
    assert starting_scripts(TESTS) == []


@pytest.mark.parametrize(
    ("code", "is_quick"),
    [
        ("from sfumato.cli.main import script", False),
        ("import sfumato.cli.main as cli", False),
        ("from tests import runs", False),
        ("from tests.processes import start", False),
        ("from sfumato.cli import parse", True),
        ("from tests import tiny", True),
    ],
)
def test_a_script_that_is_started_elsewhere_is_found(code: str, is_quick: bool, tmp_path: Path) -> None:
    for name in ("training", "end_to_end"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test_x.py").write_text(code, "utf-8")
    assert starting_scripts(tmp_path) == ([] if is_quick else ["training/test_x.py"])


def test_folders_of_tests_are_those_of_the_package() -> None:
    folders = {path.parent.relative_to(TESTS).parts[0] for path in TESTS.rglob("*/test_*.py")}
    assert {name for name in folders - ACROSS if not (PACKAGE / name).is_dir()} == set()
    alone = {file.stem.removeprefix("test_") for file in TESTS.glob("test_*.py")}
    assert {name for name in alone if not (PACKAGE / f"{name}.py").is_file()} <= {"quickstart"}
