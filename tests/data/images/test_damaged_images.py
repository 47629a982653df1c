"""Images that decoders stumble over, and files that only look like images: each is left out with a reason."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from sfumato import seeds
from sfumato.data.images import images
from sfumato.data.images.images import BrokenImageError
from sfumato.data.sources import sources
from sfumato.data.sources.complaints import Complaints
from tests.data.bad_images import png_of_size
from tests.data.folders import image, pixels, plan, subset

ORIENTATION = 0x0112


TEXT, SHORT, BYTES = 2, 3, 7
"""Types of values in EXIF."""


def _exif(kind: int, count: int, value: bytes) -> bytes:
    """Return EXIF with an orientation alone, of any type."""
    entry = struct.pack("<HHI", ORIENTATION, kind, count) + value.ljust(4, b"\0")
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)


@pytest.mark.parametrize(
    "exif",
    [
        _exif(TEXT, 2, b"6\0"),
        _exif(BYTES, 1, b"\x06"),
        *(_exif(SHORT, 1, struct.pack("<H", value)) for value in (0, 9, 65535)),
        _exif(SHORT, 2, struct.pack("<HH", 6, 6)),
    ],
    ids=["text", "bytes", "0", "9", "65535", "two"],
)
def test_an_orientation_that_is_none_turns_neither_size_nor_pixels(tmp_path: Path, exif: bytes) -> None:
    Image.fromarray(pixels("side", 80, 40)).save(tmp_path / "side.jpg", exif=exif)
    assert images.read_size(tmp_path / "side.jpg") == (80, 40)
    assert images.decode(tmp_path / "side.jpg").size == (80, 40)


@pytest.mark.parametrize(("value", "corner"), [(2, 1), (3, 3), (4, 2), (5, 0), (6, 1), (7, 3), (8, 2)])
def test_every_orientation_puts_the_marked_corner_where_a_viewer_shows_it(
    tmp_path: Path, value: int, corner: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    marked = Image.new("RGB", (32, 16))
    marked.paste((255, 255, 255), (0, 0, 8, 8))
    marked.save(tmp_path / "x.webp", exif=exif, lossless=True)
    found = images.decode(tmp_path / "x.webp")
    assert found.size == images.read_size(tmp_path / "x.webp")
    width, height = found.size
    places = [(2, 2), (width - 3, 2), (2, height - 3), (width - 3, height - 3)]
    assert [found.getpixel(place) == (255, 255, 255) for place in places].index(True) == corner


def test_exif_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    Image.fromarray(pixels("side", 80, 40)).save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff")
    assert images.decode(tmp_path / "x.jpg").size == images.read_size(tmp_path / "x.jpg") == (80, 40)


@pytest.mark.parametrize("error", [RuntimeError("no frame"), IndexError("x"), KeyError("y"), MemoryError()])
def test_whatever_a_decoder_raises_is_a_reason_to_leave_the_image_out(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: ImageFile.ImageFile) -> None:
        raise error

    image(tmp_path / "a.webp", (40, 40))
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile.load", fail)
    with pytest.raises(BrokenImageError, match=r"no frame|x|y|MemoryError"):
        images.decode(tmp_path / "a.webp")


@pytest.mark.parametrize("suffix", [".avif", ".gif"])
def test_a_file_that_is_cut_anywhere_is_broken_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    whole = image(tmp_path / f"whole{suffix}", (40, 40)).read_bytes()
    for at in range(1, len(whole), len(whole) // 12):
        (tmp_path / "cut.png").write_bytes(whole[:at])
        with suppress(BrokenImageError):
            images.read_header(tmp_path / "cut.png")
            images.decode(tmp_path / "cut.png")


def test_an_image_without_pixels_is_broken(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png_of_size((0, 64)))
    with pytest.raises(BrokenImageError, match="it has no pixels"):
        images.read_header(tmp_path / "x.png")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
@pytest.mark.parametrize(("make", "says"), [(_pipe, "no regular file"), (_socket, "No such device")])
def test_what_is_no_regular_file_is_left_out_instead_of_waited_for(
    tmp_path: Path, make: Callable[[Path], None], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path has at most a hundred characters
    image(tmp_path / "good.png", (40, 40), "x")
    image(tmp_path / "silent.png", (40, 40))
    make(Path("bad.png"))
    make(Path("silent.txt"))
    complaints = Complaints()
    found = sources.read(plan(subset(tmp_path)), complaints)
    assert [Path(each.path).name for each in found] == ["good.png"]
    reasons = dict(complaints.broken)
    assert says in reasons[str(tmp_path / "bad.png")]
    assert says in reasons[str(tmp_path / "silent.png")]


def test_a_name_that_is_no_text_has_a_seed_of_its_own() -> None:
    first, second = (os.fsdecode(name) for name in (b"\x83l.png", b"\x83R.png"))
    assert seeds.derive("vae", first) != seeds.derive("vae", second)
    assert seeds.derive("noise", 3, 1) == 461394420215423720, "as it was before names could be anything"
