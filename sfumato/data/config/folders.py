"""The folder form of a data set: sub-folders named `10_cat`, ten repeats of images of the class `cat`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from sfumato.console import printable
from sfumato.data.captions import caption_files
from sfumato.data.captions.caption_files import UnreadableCaptionError
from sfumato.data.images.images import is_image
from sfumato.errors import UserError

logger = logging.getLogger(__name__)


def subset_folders(option: str, folder: str, *, strict: bool = False) -> list[dict[str, Any]]:
    """Return the subsets in `folder`, as tables with the keys of a data set file.

    Raises:
        UserError: there is none, or `strict` and another sub-folder is in the way.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"--{option} {folder} cannot be read: {error.strerror}") from error
    named = [(entry, _repeats_and_class(entry.name)) for entry in found if entry.is_dir()]
    others = [entry.name for entry, parts in named if parts is None]
    if others:
        _warn(f"--{option}: {', '.join(others)} ignored; name sub-folders <repeats>_<class>", strict)
    subsets = [
        _subset(entry.path, number, _readable(class_tokens, entry.path))
        for entry, (number, class_tokens) in ((entry, parts) for entry, parts in named if parts is not None)
    ]
    if not subsets:
        raise UserError(f"--{option} {folder} has no sub-folder named <repeats>_<class>{_advice(found)}")
    return subsets


def has_images(folder: str) -> bool:
    """Whether images lie in the folder itself."""
    try:
        return any(is_image(name) for name in os.listdir(folder))
    except OSError:
        return False


def has_subset_folders(folder: str) -> bool:
    """Whether sub-folders named `10_cat` lie in the folder."""
    try:
        with os.scandir(folder) as entries:
            return any(entry.is_dir() and _repeats_and_class(entry.name) for entry in entries)
    except OSError:
        return False


def _repeats_and_class(name: str) -> tuple[int, str] | None:
    number, _, class_tokens = name.partition("_")
    return (int(number), class_tokens) if number.isdecimal() else None


def _readable(name: str, path: str) -> str:
    """Return a class as text, though its folder's name may be in an older encoding.

    Raises:
        UserError: it is in none that is known.
    """
    try:
        return caption_files.decode(os.fsencode(name))[0]
    except UnreadableCaptionError:
        raise UserError(f"the name of {printable(path)} is no text; rename it, 10_cat for example") from None


def _subset(path: str, num_repeats: int, class_tokens: str) -> dict[str, Any]:
    return {"image_dir": Path(path), "num_repeats": num_repeats, "class_tokens": class_tokens}


def _advice(found: list[os.DirEntry[str]]) -> str:
    has_some = any(is_image(entry.name) for entry in found)
    return "; move its images into one, 10_cat for example" if has_some else "; 10_cat for example"


def _warn(message: str, strict: bool) -> None:
    if strict:
        raise UserError(message)
    logger.warning(message)
