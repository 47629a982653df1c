"""Imports only point down: from package to package, and within a package from folder to folder.

The two tables below are the architecture. A package or folder may import what stands above it in its table.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sfumato"
LAYERS = (
    ("config",),
    ("nn", "diffusion", "checkpoints"),
    ("hub",),
    ("models", "data"),
    ("adapters", "caching"),
    ("sampling",),
    ("training", "tools"),
    ("demo",),
    ("cli",),
    ("__main__", "clients", "dropin", "library"),
)
FOLDERS = {
    "config": (
        ("json_text",),
        ("checks", "field_types", "rule", "secrets", "toml_text"),
        ("run",),
        ("tools",),
        ("scripts",),
        ("rules", "public"),
    ),
    "models": (("interface",), ("components",), ("families",), ("registry",)),
    "adapters": (
        ("layers", "lllite"),
        ("files",),
        ("words",),
        ("network",),
        ("sd_scripts",),
        ("legacy", "block_helpers"),
    ),
    "data": (("images",), ("captions",), ("config",), ("sources",), ("batches",), ("custom",)),
    "sampling": (
        ("settings",),
        ("request",),
        ("prompts",),
        ("encoding", "formats", "guides", "parts"),
        ("hires", "output", "sampler_names"),
        ("spaces",),
        ("denoiser", "starts"),
        ("conditions", "plan"),
        ("loaded_adapters",),
        ("effects",),
        ("pipeline",),
        ("generator",),
        ("session",),
        ("regularisation", "sd_scripts"),
    ),
    "training": (("core",), ("update", "trainables"), ("observers",), ("state",), ("run",)),
    "tools": (
        ("outputs", "lowrank", "onnx_models"),
        ("merging", "extracting", "converting", "importing", "inspection", "preparation"),
        ("captioning", "faces"),
        ("masking",),
    ),
}
"""The folders, and single modules beside them, of the packages that have any."""

EVERYONES = {
    "__version__",
    "console",
    "errors",
    "installing",
    "lean_imports",
    "log",
    "plugins",
    "seeds",
    "transfer",
}
MOST_MODULES = 15
"""In one folder: more hide their order, and want sub-folders."""

FILES = sorted(PACKAGE.rglob("*.py"))


def levels(rows: tuple[tuple[str, ...], ...]) -> dict[str, int]:
    """Return the height of each name in a table."""
    return {name: level for level, names in enumerate(rows) for name in names}


def path_of(file: Path) -> list[str]:
    """Return a module's path below the package, e.g. ["models", "interface", "family"]."""
    return list(file.relative_to(PACKAGE).with_suffix("").parts)


def imports(file: Path) -> set[tuple[str, ...]]:
    """Return what a file imports of the package, e.g. {("config", "run", "run", "Run")}."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {tuple(name.split(".")[1:]) for name in names if name.startswith("sfumato.")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_point_down(file: Path) -> None:
    own = path_of(file)
    if own == ["__init__"]:
        return
    packages = levels(LAYERS)
    for name in imports(file):
        if name[0] in EVERYONES:
            continue
        text = ".".join(name)
        assert name[0] in packages, f"{file}: sfumato.{text} has no layer; give it one in this test"
        assert own[0] in packages, f"{file} imports sfumato.{text}, but only layers import layers"
        if name[0] != own[0]:
            assert packages[name[0]] < packages[own[0]], f"{file}: {own[0]} must not import {text}"
        elif own[0] in FOLDERS and own[1] != "__init__" and name[1] != own[1]:
            folders = levels(FOLDERS[own[0]])
            assert folders[name[1]] < folders[own[1]], f"{file}: {own[1]} must not import {text}"


def test_tables_name_the_whole_package() -> None:
    parts = {path_of(file)[0] for file in FILES}
    assert parts - EVERYONES - {"__init__"} == set(levels(LAYERS))
    for package, rows in FOLDERS.items():
        inside = {path_of(file)[1] for file in FILES if path_of(file)[0] == package}
        assert inside - {"__init__"} == set(levels(rows)), package
    family = PACKAGE / "models" / "interface" / "family.py"
    assert ("models", "interface", "targets", "AdapterTarget") in imports(family)


FOLDERS_OF_MODULES = sorted({file.parent for file in FILES})


@pytest.mark.parametrize("folder", FOLDERS_OF_MODULES, ids=lambda folder: folder.name)
def test_folder_says_what_it_is_and_is_small(folder: Path) -> None:
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8")))
    assert len(list(folder.glob("[!_]*.py"))) <= MOST_MODULES


def test_families_are_the_only_things_in_their_folder() -> None:
    folder = PACKAGE / "models" / "families"
    assert all((found / "family.py").is_file() for found in folder.iterdir() if found.name[0] != "_")
