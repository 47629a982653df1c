"""What only one kind of system has is asked for before it is used; text is UTF-8 on all of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    *(ROOT / "sfumato").rglob("*.py"),
    *(ROOT / "sd-scripts").rglob("*.py"),
    *(ROOT / "benchmarks").glob("*.py"),
    ROOT / "quickstart.py",
]
PROGRAM = [path for path in SOURCES if path.parent.name != "benchmarks"]

POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
WINDOWS_MODULES = {"msvcrt", "winreg", "winsound", "_winapi"}
ONE_SYSTEMS = {
    "os": {
        *("fork", "forkpty", "getuid", "geteuid", "getgid", "chown", "fchmod", "setsid", "setpgid", "killpg"),
        *("getpgid", "wait", "uname", "statvfs", "sysconf", "sync", "mkfifo", "preadv", "pread", "pwritev"),
        *("posix_fadvise", "sched_getaffinity", "sched_setaffinity", "nice", "O_NONBLOCK", "O_BINARY"),
        *("startfile", "getloadavg"),
    },
    "signal": {
        "SIGHUP",
        "SIGKILL",
        "SIGUSR1",
        "SIGUSR2",
        "SIGCHLD",
        "SIGPIPE",
        "SIGALRM",
        "SIGBREAK",
        "alarm",
    },
    "mmap": {"MADV_WILLNEED", "MADV_SEQUENTIAL", "MAP_PRIVATE", "MAP_SHARED", "MAP_NORESERVE", "PROT_READ"},
    "time": {"tzset", "clock_gettime"},
}
"""Names that a module has on some systems only."""

READS_TEXT = {"read_text": 0, "write_text": 1}
"""Methods of paths, with the place of the encoding among their arguments."""


@cache
def tree_of(path: Path) -> ast.AST:
    return ast.parse(path.read_text("utf-8"))


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def texts_of_unknown_encoding(tree: ast.AST) -> Iterator[int]:
    for call in calls(tree):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        if name in READS_TEXT and len(call.args) <= READS_TEXT[name] and "encoding" not in named:
            yield call.lineno
        if isinstance(getattr(named.get("text"), "value", None), bool) and "encoding" not in named:
            yield call.lineno


def unasked(tree: ast.AST) -> Iterator[str]:
    """Yield the names of one kind of system that a file uses without `hasattr` or `getattr`."""
    asked = {
        str(call.args[1].value)
        for call in calls(tree)
        if getattr(call.func, "id", "") == "hasattr" and isinstance(call.args[1], ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in ONE_SYSTEMS.get(node.value.id, ()) and node.attr not in asked:
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Import):
            yield from ({alias.name for alias in node.names} & (POSIX_MODULES | WINDOWS_MODULES))
        elif isinstance(node, ast.ImportFrom) and node.module in POSIX_MODULES | WINDOWS_MODULES:
            yield str(node.module)


def test_text_is_read_and_written_as_utf8() -> None:
    found = {path: list(texts_of_unknown_encoding(tree_of(path))) for path in SOURCES}
    assert {path.name: lines for path, lines in found.items() if lines} == {}


def test_what_one_kind_of_system_has_is_asked_for_first() -> None:
    found = {path: list(unasked(tree_of(path))) for path in PROGRAM}
    assert {path.name: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import fcntl", ["fcntl"]),
        ("from resource import getrusage", ["resource"]),
        ("import os\nos.fork()", ["os.fork"]),
        ("if hasattr(os, 'fork'): os.fork()", []),
        ("signal.SIGTERM, os.replace", []),
    ],
)
def test_such_names_are_found(code: str, names: list[str]) -> None:
    assert list(unasked(ast.parse(code))) == names


def test_texts_of_unknown_encoding_are_found() -> None:
    lines = ["p.read_text()", "p.read_text('utf-8')", "p.write_text(x)", "run([], text=True)", "run([])"]
    assert list(texts_of_unknown_encoding(ast.parse("\n".join(lines)))) == [1, 3, 4]
