"""Where captions go: files beside the images, or one file with all of them. Both outlast a killed process."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import IO, Any, Protocol

from sfumato.checkpoints.atomic import atomic_file
from sfumato.config import json_text
from sfumato.data.captions import caption_files
from sfumato.data.images.buckets import Size
from sfumato.errors import UserError
from sfumato.tools.captioning.journal import Journal
from sfumato.tools.outputs import require_writable

logger = logging.getLogger(__name__)


class CaptionStore(Protocol):
    """A place for captions."""

    def caption(self, image: Path) -> str | None:
        """Return the caption that an image has there; None if it has none."""
        ...

    def put(self, image: Path, size: Size, caption: str) -> None:
        """Keep an image's caption, safe from whatever comes after."""
        ...

    def close(self) -> None:
        """Complete what was kept."""
        ...


class FilesBeside:
    """One file beside each image; what stood there goes into a journal."""

    def __init__(self, suffix: str, journal: Journal) -> None:
        """Take the suffix of caption files, and where replaced ones are noted."""
        self._suffix, self._journal = suffix, journal

    def caption(self, image: Path) -> str | None:
        """Read the file of an image.

        Raises:
            UnreadableCaptionError: it is no text.
        """
        path = self._path(image)
        return caption_files.read(str(path)).text if path.exists() else None

    def put(self, image: Path, size: Size, caption: str) -> None:
        """Write the file of an image, whole or not at all."""
        del size
        path = self._path(image)
        self._journal.note(path)
        # A power failure costs a few captions, which are made again; waiting for the disk would cost more.
        with atomic_file(path, is_flushed=False) as file:
            file.write(f"{caption}\n".encode("utf-8", "surrogateescape"))

    def close(self) -> None:
        """Complete the journal."""
        self._journal.close()

    def _path(self, image: Path) -> Path:
        return image.with_name(f"{image.stem}{self._suffix}")


class OneFile:
    """One `.json` or `.jsonl` file with all captions; until it is complete, lines in a file beside it."""

    def __init__(self, path: Path, *, is_continued: bool) -> None:
        """Begin the file.

        Args:
            is_continued: keep what an earlier call left, complete or not.

        Raises:
            UserError: it cannot be written.
        """
        require_writable("--output_path", path)
        self._path, self._lines_path = path, path.with_name(f"{path.name}.unfinished")
        self._records = _read_lines(self._lines_path) | _read(path) if is_continued else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lines: IO[str] = self._lines_path.open("w", encoding="utf-8", errors="surrogateescape")
        for image, record in self._records.items():
            self._append(image, record)

    def caption(self, image: Path) -> str | None:
        """Return the caption of an image, if the file has it."""
        record = self._records.get(str(image))
        return None if record is None else record["tags"]

    def put(self, image: Path, size: Size, caption: str) -> None:
        """Add an image."""
        self._records[str(image)] = record = _record(caption, list(size))
        self._append(str(image), record)

    def close(self) -> None:
        """Write the file, whole or not at all, and remove the lines beside it."""
        self._lines.close()
        lines = self._path.suffix.lower() == ".jsonl"
        text = (
            "".join(_line(image, record) for image, record in self._records.items())
            if lines
            else json.dumps(self._records, indent=4, ensure_ascii=False)
        )
        with atomic_file(self._path) as file:
            file.write(text.encode("utf-8", "surrogateescape"))
        self._lines_path.unlink()
        logger.info("captions of %d images are in %s", len(self._records), self._path)

    def _append(self, image: str, record: dict[str, Any]) -> None:
        self._lines.write(_line(image, record))
        self._lines.flush()


def _line(image: str, record: dict[str, Any]) -> str:
    row = {"image_path": image, "caption": record["tags"], "image_size": record["image_size"]}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the records of a file of either kind; none if there is no file."""
    if not path.exists():
        return {}
    if path.suffix.lower() == ".jsonl":
        return _read_lines(path)
    try:
        records = json_text.parse(path.read_text("utf-8", "surrogateescape"))
        return {image: _record(row["tags"], row["image_size"]) for image, row in records.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"--output_path {path} holds no captions: {error!r}; give another name") from error


def _read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """Return the records of a file of lines; one that a killed process wrote a part of is left out."""
    if not path.exists():
        return {}
    rows = map(_parsed, path.read_text("utf-8", "surrogateescape").splitlines())
    return {row["image_path"]: _record(row["caption"], row["image_size"]) for row in rows if row}


def _parsed(line: str) -> dict[str, Any] | None:
    """Return what a line holds; None if it is not whole."""
    try:
        row = json_text.parse(line)
    except ValueError:
        return None
    is_row = isinstance(row, dict) and {"image_path", "caption", "image_size"} <= row.keys()
    return row if is_row else None


def _record(caption: Any, size: Any) -> dict[str, Any]:
    return {"tags": str(caption), "image_size": size}
