"""What is missing is installed by one command, which fits the interpreter that runs."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfumato import installing

ROOT = Path(__file__).parents[2]
SOURCES = [*(ROOT / "sfumato").rglob("*.py"), *(ROOT / "sd-scripts").rglob("*.py")]
INSTALLS = re.compile(r"\b(pip3?|uv|conda) (\w+ )?install|-m pip|install it\b", re.IGNORECASE)


def said(file: Path) -> Iterator[str]:
    """Yield each text of a file but for docstrings."""
    tree = ast.parse(file.read_text("utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def test_no_message_names_an_installer_of_its_own() -> None:
    own = ROOT / "sfumato" / "installing.py"
    found = [(file, text) for file in SOURCES if file != own for text in said(file) if INSTALLS.search(text)]
    assert found == []
    assert INSTALLS.search("run `pip install wandb`")


def test_the_command_runs_in_a_shell_and_finds_this_interpreters_installer() -> None:
    line = installing.command("--version").replace(" install ", " ", 1)
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"pip \d+", done.stdout)


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell takes the command apart")
@pytest.mark.parametrize("folder", ["plain", "with blank", "with $HOME", "with 'quote'", 'with "quote"'])
def test_the_command_reaches_an_interpreter_in_any_folder(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / folder / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    line = installing.command("lion-pytorch>=0.2", "wandb")
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["-m", "pip", "install", "lion-pytorch>=0.2", "wandb"]


def test_an_environment_without_pip_is_served_by_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing.PathFinder, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "executable", "/my env/bin/python")
    assert installing.command("wandb") == 'uv pip install --python "/my env/bin/python" wandb'


def test_a_module_is_installed_by_the_name_of_its_package() -> None:
    declared = (ROOT / "pyproject.toml").read_text("utf-8")
    for module in (
        "bitsandbytes",
        "lion_pytorch",
        "lycoris.kohya",
        "onnxruntime",
        "pillow_jxl",
        "skimage",
        "wandb",
    ):
        assert f'"{installing.package_of(module)}>=' in declared
