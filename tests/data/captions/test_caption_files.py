from __future__ import annotations

from pathlib import Path

import pytest

from sfumato.data.captions import caption_files
from sfumato.data.captions.caption_files import UnreadableCaptionError


@pytest.mark.parametrize(
    ("data", "text", "encoding"),
    [
        (b"plain", "plain", "UTF-8"),
        ("ünïcode 猫".encode(), "ünïcode 猫", "UTF-8"),
        (b"\xef\xbb\xbfmark", "mark", "UTF-8"),
        ("wide ü".encode("utf-16"), "wide ü", "UTF-16"),
        ("wide".encode("utf-16-be").join([b"\xfe\xff", b""]), "wide", "UTF-16"),
        ("café".encode("cp1252"), "café", "Windows-1252"),
        (
            "it\u2019s élan \u2013 a cat\u2019s".encode("cp1252"),
            "it\u2019s élan \u2013 a cat\u2019s",
            "Windows-1252",
        ),
        ("猫の写真".encode("cp932"), "猫の写真", "Shift-JIS"),
        ("猫, 少女".encode("cp932"), "猫, 少女", "Shift-JIS"),
    ],
)
def test_text_is_read_in_its_own_encoding(data: bytes, text: str, encoding: str) -> None:
    assert caption_files.decode(data) == (text, encoding)


@pytest.mark.parametrize(
    "data", [b"\x81\x8d\x9d\x90", "wide".encode("utf-16-le"), b"\xff\xfea", b"\xff\xfe\x00\xd8"]
)
def test_what_is_no_text_is_refused_with_a_remedy(data: bytes) -> None:
    with pytest.raises(UnreadableCaptionError, match="save it as UTF-8"):
        caption_files.decode(data)


def test_lines_end_as_on_any_system_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("one\u2028two \r\n\r three\rfour\n".encode())
    assert caption_files.read(str(path)).caption() == "one\u2028two"
    assert caption_files.read(str(path)).caption(all_lines=True) == "one\u2028two\nthree\nfour"


def test_a_file_that_is_no_caption_by_its_size_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * caption_files.MOST_BYTES)
    assert len(caption_files.read(str(tmp_path / "a.txt")).text) == caption_files.MOST_BYTES
    (tmp_path / "a.txt").write_bytes(b"x" * (caption_files.MOST_BYTES + 1))
    with pytest.raises(UnreadableCaptionError, match="more than 1,000,000 bytes"):
        caption_files.read(str(tmp_path / "a.txt"))


def test_a_file_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(UnreadableCaptionError, match="cannot be read: it is no regular file"):
        caption_files.read(str(tmp_path))
