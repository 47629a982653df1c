"""What the linter knows, and what it does not."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


UTF8_EVERYWHERE = ["--preview", "--select", "PLW1514"]
"""Text files say their encoding: that of Windows is another one."""


@pytest.mark.parametrize("options", [[], UTF8_EVERYWHERE], ids=["own rules", "encodings"])
def test_linter_has_no_complaint(options: list[str]) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", *options, str(ROOT)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_code_holds_no_notes_to_self() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X:")
    sources = [
        *(ROOT / "sfumato").rglob("*.py"),
        *(ROOT / "sd-scripts").rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
    ]
    assert [file for file in sources if any(mark in file.read_text("utf-8") for mark in marks)] == []
