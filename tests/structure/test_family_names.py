"""No part of the program but the families themselves, and the tables of the command line, names a family."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sfumato"
FAMILY = re.compile(
    r"(?<![a-z])(flux|sdxl|sd[123]|sd3_?5|sd_?1_?5|chroma|lumina|schnell)(?![a-z])", re.IGNORECASE
)
EXEMPT = (
    "models",
    "cli",
    "demo",
    "clients/names.py",
    "tools/importing/programs",
    "adapters/sd_scripts/network_modules.py",
)
"""Where a family may be named; the demo is a program that runs one family."""

OPTION_VALUE = "flux_shift"
"""A choice of `--timestep_sampling` that happens to hold a family's name."""

FILES = [
    file
    for file in sorted(PACKAGE.rglob("*.py"))
    if not file.relative_to(PACKAGE).as_posix().startswith(EXEMPT)
]


def words(file: Path) -> Iterator[tuple[int, str]]:
    """Yield each identifier and each text of a file, docstrings left out, with its line."""
    tree = ast.parse(file.read_text("utf-8"))
    texts = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            yield line, node.value
        for field in ("id", "attr", "name", "arg", "module", "asname"):
            if isinstance(value := getattr(node, field, None), str):
                yield line, value


def naming(file: Path) -> list[str]:
    """Return where a file names a family, e.g. ["12: is_sdxl"]."""
    return [f"{line}: {word}" for line, word in words(file) if FAMILY.search(word.replace(OPTION_VALUE, ""))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_file_names_no_family(file: Path) -> None:
    assert naming(file) == []


@pytest.mark.parametrize(
    "code", ["is_sdxl = 1", "run('flux')", "import sd3.x", "def load_flux(): ...", "a.sd15"]
)
def test_family_names_are_found(code: str, tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text(code)
    assert naming(file)


@pytest.mark.parametrize("code", ["influx = 1", "'''About flux.'''", "sampling = 'flux_shift'", "sdpa = 1"])
def test_other_words_pass(code: str, tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text(code)
    assert not naming(file)
