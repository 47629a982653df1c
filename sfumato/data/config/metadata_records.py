"""Metadata files as records: caption, tags and training size of each image, by its key.

The preparation tools write `{"<key>": {"caption": ..., "tags": ..., "train_resolution": [w, h]}}`, where a
key is a path or the stem of a file in the image folder. A `.jsonl` file has one object a line instead, with
its `image_path`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from sfumato.config import json_text
from sfumato.data.captions.caption_files import MOST_BYTES
from sfumato.data.captions.captions import CaptionSettings
from sfumato.data.images.buckets import Size
from sfumato.errors import UserError

# JSON can escape one half of an emoji alone, if a text was cut off there.
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class Record(NamedTuple):
    """What a metadata file says of one image.

    Attributes:
        train_size: (width, height) to train it at; None leaves that to the buckets.
    """

    caption: str = ""
    tags: str = ""
    train_size: Size | None = None

    def text(self, settings: CaptionSettings) -> str:
        """Return caption and tags as one caption; with wildcards each line of several gets the tags."""
        comma = settings.caption_separator
        lines = [line.strip() for line in self.caption.splitlines() if line.strip()]
        if settings.enable_wildcard:
            tags = comma.join(self.tags.splitlines())
            return "\n".join(_joined(line, tags, comma) for line in lines or [""])
        return _joined(lines[0] if lines else "", self.tags, comma)


def read_records(path: Path) -> dict[str, Record]:
    """Return the record of each key.

    Raises:
        UserError: the file is missing, no JSON, empty, or says something impossible.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"metadata_file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"metadata_file {path} is not UTF-8 text; save it as UTF-8") from error
    try:
        entries = _of_lines(text, path) if path.suffix.lower() == ".jsonl" else json_text.parse(text)
    except ValueError as error:
        raise UserError(f"metadata_file {path} is not valid JSON: {error}") from error
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"metadata_file {path} describes no images; it should map each to its caption")
    return {key: _record(entry, f"{path}, {key!r}") for key, entry in entries.items()}


def train_sizes(paths: Iterable[Path]) -> list[Size] | None:
    """Return the training sizes that these files give; None unless every image has one."""
    sizes = [record.train_size for path in paths for record in read_records(path).values()]
    known = [size for size in sizes if size is not None]
    return known if len(known) == len(sizes) else None


def _joined(caption: str, tags: str, comma: str) -> str:
    return comma.join(text for text in (caption, tags) if text)


def _of_lines(text: str, path: Path) -> dict[str, Any]:
    entries = [json_text.parse(line) for line in text.splitlines() if line.strip()]
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("image_path"), str):
            raise UserError(f"metadata_file {path}: object {number} has no image_path; give it one")
    return {entry["image_path"]: entry for entry in entries}


def _record(entry: Any, where: str) -> Record:
    if not isinstance(entry, dict):
        raise UserError(f"metadata_file {where} is {entry!r}; it should be an object with caption or tags")
    texts = {name: entry.get(name) or "" for name in ("caption", "tags")}
    for name, value in texts.items():
        if not isinstance(value, str):
            raise UserError(f"metadata_file {where}: {name} is {value!r}; it must be a text")
        if len(value) > MOST_BYTES:
            raise UserError(f"metadata_file {where}: {name} has {len(value):,} characters; shorten it")
        if _HALF_CHARACTER.search(value):
            raise UserError(f"metadata_file {where}: {name} {value!r} has half a character; mend its escape")
    return Record(**texts, train_size=_size(entry.get("train_resolution"), where))


def _size(value: Any, where: str) -> Size | None:
    if value is None:
        return None
    is_pair = isinstance(value, list) and len(value) == 2 and all(isinstance(side, int) for side in value)
    if not is_pair or min(value) < 1:
        raise UserError(f"metadata_file {where}: train_resolution is {value!r}; it must be [width, height]")
    return value[0], value[1]
