"""Captions and sizes of a folder's images in a file, as sd-scripts keeps them with `cache_info`.

It is written for sd-scripts, which believes it without looking at the images. Nothing is read from it here:
the index beside the images (`index.py`) saves the same work and knows when a file has changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sfumato.checkpoints.atomic import atomic_file
from sfumato.data.sources.complaints import Complaints
from sfumato.data.sources.image_table import TrainingImage
from sfumato.errors import UserError

NAME = "metadata_cache.json"


def kept(images: Iterable[TrainingImage], folder: str, complaints: Complaints) -> Iterator[TrainingImage]:
    """Yield a folder's images; when all are known, write the file unless it says the same already."""
    entries: dict[str, Any] = {}
    for image in images:
        entries[image.path] = {"caption": image.caption, "resolution": list(image.size)}
        yield image
    if not entries:
        return
    text = json.dumps(entries, indent=2, ensure_ascii=False)
    try:
        _write(Path(folder, NAME), text.encode("utf-8", "surrogateescape"))
    except UserError as error:
        complaints.warn(f"cache_info: {error}")


def _write(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return
    with atomic_file(path) as file:
        file.write(content)
