"""A folder in which everything is wrong that a folder of images can have, one of each."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.folders import pixels

HUGE = (20_000, 20_000)


def bad_folder(folder: Path) -> Path:
    """Write one file of each defect, and six flawless images, into a new folder."""
    folder.mkdir(parents=True)
    for number in range(6):
        _image(folder / f"good_{number}.png", (96, 64), f"photo of a cat, number {number}")
    _broken(folder)
    _odd_modes(folder)
    _odd_names(folder)
    _odd_captions(folder)
    return folder


def _broken(folder: Path) -> None:
    whole = _image(folder / "truncated.jpg", (320, 240), "truncated")
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    _image(folder / "zero_byte.png", (64, 64), "zero").write_bytes(b"")
    _image(folder / "web_page.jpg", (64, 64), "page").write_bytes(b"<html>not found</html>")
    _image(folder / "huge.png", (64, 64), "huge").write_bytes(png_of_size(HUGE))


def _odd_modes(folder: Path) -> None:
    colours = Image.fromarray(pixels("modes", 80, 80))
    colours.convert("CMYK").save(folder / "cmyk.jpg")
    grey_16 = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(grey_16).save(folder / "sixteen_bit.png")
    colours.quantize(8).save(folder / "palette.png", transparency=bytes(range(8)))
    frames = [Image.fromarray(pixels(f"frame {n}", 64, 64)) for n in range(3)]
    frames[0].save(folder / "animated.webp", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels("rotated", 100, 60)).save(folder / "rotated.jpg", exif=exif)
    for name in ("cmyk", "sixteen_bit", "palette", "animated", "rotated"):
        (folder / f"{name}.txt").write_text(f"an image called {name}")


def _odd_names(folder: Path) -> None:
    for name in ("with spaces.png", "名前 ünïcode.png", "SHOUTED.PNG", "two\nlines.png"):
        _image(folder / name, (64, 64), f"odd name {len(name)}")
    _image(folder / "twin.png", (64, 64), "one caption for two")
    _image(folder / "twin.jpg", (64, 96), None)
    copied = _image(folder / "copy_a.png", (96, 96), "a copy")
    Image.open(copied).resize((192, 192)).save(folder / "copy_b.jpg", quality=90)
    (folder / "copy_b.txt").write_text("the same again, larger")
    _image(folder / "tiny.png", (16, 24), "far too small")
    _image(folder / "panorama.png", (600, 60), "far too wide")


def _odd_captions(folder: Path) -> None:
    texts = {
        "bom": b"\xef\xbb\xbfbyte order mark\r\nsecond line\r\n",
        "utf_16": "sixteen bits each".encode("utf-16"),
        "western": "caf\xe9 d\u2019\xe9t\xe9".encode("cp1252"),
        "japanese": "猫の写真、ひとり".encode("cp932"),
        "no_text": b"\x81\x8d\x00\x9d",
        "empty": b"",
        "long": b"a cat, " * 120,
    }
    for name, text in texts.items():
        _image(folder / f"{name}.png", (64, 64), None)
        (folder / f"{name}.txt").write_bytes(text)
    _image(folder / "no_caption.png", (64, 64), None)


def _image(path: Path, size: tuple[int, int], caption: str | None) -> Path:
    """Write noise of low frequency, so that no two images look alike and scaling keeps them alike."""
    small = Image.fromarray(pixels(path.name, 12, 12))
    small.resize(size, Image.Resampling.BICUBIC).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def png_of_size(size: tuple[int, int]) -> bytes:
    """Return a PNG that claims to be of that size and has hardly any pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
