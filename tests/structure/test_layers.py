"""Imports only point down the list of layers."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sfumato"
LAYERS = (
    ("config",),
    ("nn", "diffusion", "checkpoints"),
    ("models", "data"),
    ("adapters", "caching"),
    ("sampling",),
    ("training", "tools"),
    ("demo",),
    ("cli",),
    ("__main__",),
)
EVERYONES = {"__version__", "console", "errors", "installing", "log", "seeds", "transfer"}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(file: Path) -> set[str]:
    """Return the parts of the package that a file imports, e.g. {"config", "nn"}."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("sfumato.")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_point_down(file: Path) -> None:
    own = file.relative_to(PACKAGE).with_suffix("").parts[0]
    if own == "__init__":
        return
    for name in imports(file) - EVERYONES - {own}:
        assert name in LEVEL, f"{file}: sfumato.{name} has no layer; give it one in this test"
        assert own in LEVEL, f"{file} imports sfumato.{name}, but only layers import layers"
        assert LEVEL[name] < LEVEL[own], f"{file}: {own} must not import {name}"


def test_walk_sees_the_whole_package() -> None:
    parts = {file.relative_to(PACKAGE).with_suffix("").parts[0] for file in FILES}
    assert parts - EVERYONES - {"__init__"} == set(LEVEL), "every part of the package has a layer, and exists"
    assert imports(PACKAGE / "models" / "family.py") == {"config", "errors", "models"}
