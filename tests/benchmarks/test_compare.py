"""Two commits are compared by their own benchmarks, run on their own code, in processes of theirs too."""

import subprocess
from pathlib import Path

import pytest

from benchmarks import compare

BENCHMARK = """
import json, subprocess, sys
code = "import sfumato; print(sfumato.COST)"
inner = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
import sfumato
print(json.dumps({"only_NAME": 1, "s": sfumato.COST, "parts": {"s": int(inner.stdout)}, "list": [0, 2]}))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of two commits, of which the second takes 3 where the first took 4."""

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "--quiet")
    for folder in ("sfumato", "benchmarks", "tests"):
        (tmp_path / folder).mkdir()
    for tag, cost in (("old", 4), ("new", 3)):
        (tmp_path / "sfumato" / "__init__.py").write_text(f"COST = {cost}\n", "utf-8")
        (tmp_path / "benchmarks" / "one.py").write_text(BENCHMARK.replace("NAME", tag), "utf-8")
        (tmp_path / "benchmarks" / f"only_{tag}.py").write_text("raise SystemExit('broken')", "utf-8")
        git("add", ".")
        git("commit", "--quiet", "-m", tag)
        git("tag", tag)
    return tmp_path


def test_ratios_are_those_of_each_commits_own_code(project: Path) -> None:
    found = compare.compare(project, "old", "new", ["one"], rounds=2)
    assert found == {  # what only one of them prints is left out
        "one.s": {"a": 4, "b": 3, "ratio": 0.75},
        "one.parts.s": {"a": 4, "b": 3, "ratio": 0.75},
        "one.list.0": {"a": 0, "b": 0},
        "one.list.1": {"a": 2, "b": 2, "ratio": 1},
    }
    assert "one.parts.s             4             3   0.750" in compare.table(found)
    listed = subprocess.run(
        ["git", "worktree", "list"], cwd=project, capture_output=True, text=True, check=True
    )
    assert len(listed.stdout.splitlines()) == 1  # nothing is left behind


@pytest.mark.parametrize(
    ("commits", "benchmark", "message"),
    [
        (("old", "new"), "only_new", "one of the commits has no benchmarks/only_new.py"),
        (("old", "new"), "only_old", "only_old.py failed:\nbroken"),
        (("old", "none"), "one", "none"),
    ],
)
def test_what_cannot_be_compared_is_said(
    project: Path, commits: tuple[str, str], benchmark: str, message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        compare.compare(project, *commits, [benchmark], rounds=1)


def test_ratios_are_taken_round_by_round() -> None:
    assert compare.related([1, 10, 2], [2, 10, 6]) == {"a": 2, "b": 6, "ratio": 2}
