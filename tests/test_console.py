"""Standard streams whose reader is gone, or whose disk is full, end nothing; a lost product is an error."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sfumato import console

ROOT = Path(__file__).parents[1]
FULL = Path("/dev/full")

TALK = """
import os, sys, warnings
from sfumato.console import keep_alive
keep_alive()
keep_alive()
print("ready", flush=True)
sys.stdin.read()
for _ in range(2000):
    print("to output" * 9)
    print("to error" * 9, file=sys.stderr)
warnings.warn("from a library", stacklevel=1)
sys.stdout.close()
print("after it was closed")
os.close(2)
print("after its number was closed", file=sys.stderr)
print("held until the end", end="")
os.mkdir(sys.argv[1])
"""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes and devices are POSIX's")


def talk(done: Path, *python: str, **streams: object) -> subprocess.Popen[str]:
    command = [sys.executable, *python, "-c", TALK, str(done)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True, **streams)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("python", [(), ("-u",), ("-X", "dev")], ids=str)
def test_a_reader_that_ends_does_not_end_the_writer(python: tuple[str, ...], tmp_path: Path) -> None:
    writer = talk(tmp_path / "done", *python, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert writer.stdout
    assert writer.stdout.readline() == "ready\n"
    writer.stdout.close()
    writer.communicate()
    assert writer.returncode == 0
    assert (tmp_path / "done").exists()


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
def test_a_full_disk_does_not_end_the_writer(tmp_path: Path) -> None:
    with FULL.open("w", encoding="utf-8") as full:
        writer = talk(tmp_path / "done", stdout=full, stderr=full)
        writer.communicate()
    assert writer.returncode == 0
    assert (tmp_path / "done").exists()


def test_streams_that_were_closed_before_the_start_are_replaced(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TALK, str(tmp_path / "done")]
    shell = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *command]
    assert subprocess.run(shell, cwd=ROOT, check=False).returncode == 0
    assert (tmp_path / "done").exists()


def stream_over(descriptor: int) -> console._Lasting:
    like = io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), "ascii", line_buffering=True)
    return console._lasting(like, "<stdout>")


def test_a_pipe_that_does_not_block_gets_everything() -> None:
    source, target = os.pipe()
    os.set_blocking(target, False)
    read: list[bytes] = []
    with os.fdopen(source, "rb") as reader:
        thread = threading.Thread(target=lambda: read.append(reader.read()))
        stream = stream_over(target)
        thread.start()
        print("é" + "x" * 200_000, file=stream, flush=True)
        os.close(target)
        thread.join()
    assert read == [b"\\xe9" + b"x" * 200_000 + b"\n"]
    assert console.failure(stream) == ""


def test_a_signals_handler_may_write_in_the_midst_of_a_write() -> None:
    source, target = os.pipe()
    stream = stream_over(target)

    class Interrupting:
        closed = False

        def write(self, data: memoryview) -> int:
            if bytes(data).startswith(b"outer"):
                print("inner", file=stream)
            return os.write(target, data)

    stream.raw._stream = Interrupting()  # type: ignore[assignment]
    print("outer", file=stream)
    assert os.read(source, 100) == b"inner\nouter\n"
    os.close(source)
    os.close(target)


def options(stdout: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sfumato", "options", "flux_train_network", "--json"]
    return subprocess.Popen(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True)  # type: ignore[call-overload,no-any-return]


def test_a_product_whose_reader_has_seen_enough_ends_quietly() -> None:
    writer = options(subprocess.PIPE)
    assert writer.stdout
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.communicate()[1] == ""
    assert writer.returncode == 0


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
def test_a_product_that_finds_no_room_is_an_error() -> None:
    with FULL.open("w", encoding="utf-8") as full:
        writer = options(full)
    said = writer.communicate()[1]
    assert said == "error: the output cannot be written: No space left on device; send it elsewhere\n"
    assert writer.returncode == 2
