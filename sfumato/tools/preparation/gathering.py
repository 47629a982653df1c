"""Gather the text files beside images in one metadata file: as captions, or as tags."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Literal

from sfumato.config.tools.preparation import GatheringConfig
from sfumato.console import printable
from sfumato.data.captions import caption_files
from sfumato.data.captions.caption_files import UnreadableCaptionError
from sfumato.errors import UserError
from sfumato.log import counted, progress
from sfumato.tools.outputs import require_writable
from sfumato.tools.preparation import records

logger = logging.getLogger(__name__)


def gather(options: GatheringConfig, kind: Literal["caption", "tags"]) -> None:
    """Write the metadata file with the texts of all images that have one; those of others are kept.

    Raises:
        UserError: there are no images or no texts, or a file cannot be read or written.
    """
    out, source = Path(options.out_json), _source(options)
    found = records.read(source, "--in_json") if source else {}
    images = records.images(options.train_data_dir, recursive=options.recursive)
    require_writable("OUT_JSON", out)
    num_read = 0
    for image in progress(images, unit="image", title="reading captions"):
        text = _text(image, options.suffix)
        if text is None:
            continue
        num_read += 1
        found.setdefault(records.key_of(image, full_path=options.full_path), {})[kind] = text
        if options.debug:
            logger.info("%s: %s", printable(str(image)), printable(text))
    if not num_read:
        raise UserError(
            f"no image in {options.train_data_dir} has a {options.suffix} file; give --caption_extension"
        )
    if num_read < len(images):
        missing = len(images) - num_read
        logger.warning("%d of %s without %s file", missing, counted(len(images), "image"), options.suffix)
    records.write(out, found)


def _source(options: GatheringConfig) -> Path | None:
    """Return the file whose records are added to: the one that is named, or the one that is written."""
    if options.in_json:
        return Path(options.in_json)
    out = Path(options.out_json)
    return out if out.exists() else None


def _text(image: Path, suffix: str) -> str | None:
    """Return the whole text beside an image, None where there is none that can be read."""
    path = os.path.splitext(image)[0] + suffix
    if not os.path.exists(path):
        return None
    try:
        return caption_files.read(path).text.strip()
    except UnreadableCaptionError as error:
        logger.warning("%s %s", printable(path), error)
        return None
