"""Caption files: which one belongs to an image, and its words whatever they were encoded in.

Text is UTF-8, with or without byte order mark, or UTF-16 with one. Anything else comes from an older editor:
it is read as Shift-JIS if that makes most of it Japanese, else as Windows-1252, and the user is told.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Container
from typing import NamedTuple

from sfumato.data.images.regular_files import open_regular

# A face detector appends `_<centre x>_<centre y>_<width>_<height>`; the caption may lack these four.
_NUM_FACE_PARTS = 4
_LINE_END = re.compile(r"\r\n|\r|\n")
_JAPANESE = re.compile(r"[\u3000-\u30ff\u4e00-\u9fff\uff01-\uff60]")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

UTF_8, UTF_16, SHIFT_JIS, WINDOWS_1252 = "UTF-8", "UTF-16", "Shift-JIS", "Windows-1252"
MOST_BYTES = 1_000_000
"""Of a caption file: far beyond what any text encoder reads, and each image's is kept in memory."""

GUESSED = (SHIFT_JIS, WINDOWS_1252)
"""Encodings that nothing but the text itself speaks for."""


class UnreadableCaptionError(Exception):
    """A caption file that holds no text; the message says why, without the path."""


class CaptionFile(NamedTuple):
    """The text of a caption file and the encoding that it was read in."""

    encoding: str
    text: str

    def caption(self, *, all_lines: bool = False) -> str:
        """Return the first line, or with `all_lines` all that are not empty, joined by newlines."""
        if not all_lines:
            return _LINE_END.split(self.text, 1)[0].strip()
        return "\n".join(filter(None, (line.strip() for line in _LINE_END.split(self.text))))

    def __str__(self) -> str:
        return f"{self.encoding}\n{self.text}"

    @classmethod
    def parse(cls, text: str) -> CaptionFile:
        """Return the file that `str` made this text of."""
        encoding, _, text = text.partition("\n")
        return cls(encoding, text)


def caption_file(image: str, names: Container[str], extension: str) -> str | None:
    """Return the name of an image's caption file, if it is among `names`."""
    base = image.rpartition(".")[0]
    if base + extension in names:
        return base + extension
    parts = base.split("_")
    if len(parts) > _NUM_FACE_PARTS:
        shorter = "_".join(parts[:-_NUM_FACE_PARTS]) + extension
        return shorter if shorter in names else None
    return None


def read(path: str) -> CaptionFile:
    """Read a caption file.

    Raises:
        UnreadableCaptionError: the file cannot be opened, or is no text.
    """
    try:
        with open_regular(path) as file:
            is_long = os.fstat(file.fileno()).st_size > MOST_BYTES
            data = b"" if is_long else file.read()
    except OSError as error:
        raise UnreadableCaptionError(f"cannot be read: {error.strerror}") from error
    if is_long:
        raise UnreadableCaptionError(f"has more than {MOST_BYTES:,} bytes, which is no caption; shorten it")
    text, encoding = decode(data)
    return CaptionFile(encoding, text)


def decode(data: bytes) -> tuple[str, str]:
    """Return (text, encoding) of a file's bytes.

    Raises:
        UnreadableCaptionError: they are no text, or in an encoding that nothing tells.
    """
    is_utf_16 = data.startswith(_UTF_16)
    try:
        text, encoding = data.decode("utf-16" if is_utf_16 else "utf-8-sig"), UTF_16 if is_utf_16 else UTF_8
    except UnicodeDecodeError:
        text, encoding = ("", "") if is_utf_16 else _guess(data)
    if not encoding or "\0" in text:
        raise UnreadableCaptionError("is not text in an encoding that is known here; save it as UTF-8")
    return text, encoding


def _guess(data: bytes) -> tuple[str, str]:
    """Return (text, encoding) of bytes that are not UTF-8; two empty texts where nothing fits."""
    text = _decoded(data, "cp932")
    letters = re.sub(r"[\s,.]", "", text)
    if 2 * len(_JAPANESE.findall(letters)) > len(letters):
        return text, SHIFT_JIS
    text = _decoded(data, "cp1252")
    return (text, WINDOWS_1252) if text else ("", "")


def _decoded(data: bytes, codec: str) -> str:
    try:
        return data.decode(codec)
    except UnicodeDecodeError:
        return ""
