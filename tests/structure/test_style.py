"""What the linter knows, and what it does not."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_linter_has_no_complaint() -> None:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", str(ROOT)]
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
