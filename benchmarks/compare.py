"""Run benchmarks of two commits in turn and print how their figures relate.

Each commit is checked out into a folder of its own and runs its own benchmark files, with this Python and
its libraries. Rounds go A B, B A, A B, ...: what slows the machine for a while slows both. A ratio is the
median over the rounds of B's figure divided by A's; 0.9 means that B takes a tenth less.

    python benchmarks/compare.py HEAD~5 HEAD
    python benchmarks/compare.py v1 v2 --rounds 5 --benchmarks cli_start 'dataset_start --images 5000'
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = ("cli_start", "step_overhead", "dataset_start --images 20000")

Figures = dict[str, float]
"""By name, e.g. `cached.cpu_s`."""


def main() -> None:
    """Print a table for people, and the same as JSON on standard output."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", metavar="A", help="a commit, branch or tag")
    parser.add_argument("b", metavar="B", help="what is compared with it")
    parser.add_argument("--benchmarks", nargs="+", default=DEFAULT, metavar="'NAME OPTIONS'")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found = compare(ROOT, arguments.a, arguments.b, arguments.benchmarks, arguments.rounds)
    print(table(found), file=sys.stderr)
    print(json.dumps({"a": arguments.a, "b": arguments.b, "rounds": arguments.rounds, "figures": found}))


def compare(root: Path, a: str, b: str, benchmarks: Sequence[str], rounds: int) -> dict[str, Figures]:
    """Return for each figure that both commits have the medians `a` and `b`, and the median `ratio` b/a."""
    taken: dict[Path, list[Figures]] = {}
    with ExitStack() as stack:
        first, second = (stack.enter_context(checkout(root, commit)) for commit in (a, b))
        for number in range(rounds):
            for folder in (first, second) if number % 2 == 0 else (second, first):
                found = {k: v for name in benchmarks for k, v in run(folder, name).items()}
                taken.setdefault(folder, []).append(found)
    names = [name for name in taken[first][0] if name in taken[second][0]]
    return {
        name: related([figures[name] for figures in taken[first]], [f[name] for f in taken[second]])
        for name in names
    }


@contextmanager
def checkout(root: Path, commit: str) -> Iterator[Path]:
    """Lend a folder that holds a commit's files, from which Python really takes the package."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve() / "checkout"
        output_of("git", "-C", str(root), "worktree", "add", "--quiet", "--detach", str(folder), commit)
        try:
            code = "import sfumato; print(sfumato.__file__)"
            found = Path(output_of(sys.executable, "-c", code, folder=folder).strip())
            if folder not in found.resolve().parents:
                raise SystemExit(f"error: {commit} would be measured with the package of {found.parent}")
            output_of(sys.executable, "-m", "compileall", "-q", "sfumato", "tests", folder=folder)
            yield folder
        finally:
            output_of("git", "-C", str(root), "worktree", "remove", "--force", str(folder))


def run(folder: Path, benchmark: str) -> Figures:
    """Run one benchmark of a checkout; return its figures."""
    name, *options = shlex.split(benchmark)
    file = folder / "benchmarks" / f"{name}.py"
    if not file.is_file():
        raise SystemExit(f"error: {benchmark}: one of the commits has no benchmarks/{name}.py")
    return dict(numbers(json.loads(output_of(sys.executable, str(file), *options, folder=folder)), name))


def output_of(*command: str, folder: Path | None = None) -> str:
    """Run a command, in a checkout and with its package where one is given; return what it prints."""
    # A path of the environment wins over an editable installation, in processes that a benchmark starts too.
    environment = {**os.environ, **({"PYTHONPATH": str(folder)} if folder else {})}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"error: {shlex.join(command)} failed:\n{done.stderr or done.stdout}")
    return done.stdout


def numbers(value: object, name: str) -> Iterator[tuple[str, float]]:
    """Yield the numbers in what a benchmark printed, by their path in it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from numbers(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers(inner, f"{name}.{index}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def related(a: Sequence[float], b: Sequence[float]) -> Figures:
    """Return the medians of two rows of figures, and that of their ratios where none is divided by 0."""
    medians = {"a": statistics.median(a), "b": statistics.median(b)}
    if not all(a):
        return medians
    return {**medians, "ratio": round(statistics.median(y / x for x, y in zip(a, b, strict=True)), 4)}


def table(found: Mapping[str, Figures]) -> str:
    """Return one line for each figure."""
    width = max(map(len, found), default=0)
    lines = [f"{'':{width}}  {'A':>12}  {'B':>12}     B/A"]
    for name, figures in found.items():
        ratio = f"{figures['ratio']:.3f}" if "ratio" in figures else "-"
        lines.append(f"{name:{width}}  {figures['a']:12.6g}  {figures['b']:12.6g}  {ratio:>6}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
