"""Metadata files: captions, tags and training sizes of many images in one JSON file.

The preparation tools write `{"<key>": {"caption": ..., "tags": ..., "train_resolution": [w, h]}}`, where a
key is a path or the stem of a file in the image folder. A `.jsonl` file has one object a line instead, with
its `image_path`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from sfumato.data.captions.captions import CaptionSettings
from sfumato.data.config.metadata_records import read_records
from sfumato.data.images.buckets import Size
from sfumato.data.images.images import is_image
from sfumato.data.sources import latent_only_images
from sfumato.log import counted, plural


class Entry(NamedTuple):
    """An image that was found: its path, its caption, and the (width, height) to train it at, if given."""

    path: str
    caption: str
    train_size: Size | None


def entries(
    path: Path,
    image_dir: Path | None,
    settings: CaptionSettings,
    warn: Callable[[str], None],
    *,
    takes_latents: bool = False,
    latents_ending: str = "",
) -> list[Entry]:
    """Return the images that a metadata file describes, in its order; `warn` is told what is missing.

    Args:
        takes_latents: take a file of latents for an image that is not there.
        latents_ending: see `Finder`.

    Raises:
        UserError: the file cannot be used.
    """
    records, find = read_records(path), Finder(image_dir, latents_ending)
    found = {key: image for key in records if (image := find(key, takes_latents=takes_latents))}
    if missing := [key for key in records if key not in found]:
        kept = not takes_latents and any(find(key, takes_latents=True) for key in missing)
        hint = "; latents of some are: --cache_latents_to_disk may train from them" if kept else ""
        warn(
            f"{len(missing)} of {counted(len(records), 'image')} in {path} "
            f"{plural(len(missing), 'is', 'are')} not {_where(image_dir)} and left out, "
            f"the first is {missing[0]!r}{hint}"
        )
    if silent := [key for key in found if not (records[key].caption or records[key].tags)]:
        warn(
            f"{len(silent)} of {counted(len(records), 'image')} in {path} "
            f"{plural(len(silent), 'has', 'have')} neither caption nor tags: trained without a caption, "
            f"the first is {silent[0]!r}"
        )
    return [
        Entry(image, records[key].text(settings), records[key].train_size) for key, image in found.items()
    ]


def _where(image_dir: Path | None) -> str:
    return f"in {image_dir}" if image_dir else "there (image_dir is not given)"


class Finder:
    """Finds the image that a key stands for; each folder is listed once.

    Latents of it are `<key>.npz`, or `<key>_<width>x<height>` and `latents_ending`.
    """

    def __init__(self, image_dir: Path | None, latents_ending: str = "") -> None:
        self._image_dir = None if image_dir is None else str(image_dir)
        self._listed = cache(partial(_Listing.of, latents_ending=latents_ending))

    def __call__(self, key: str, *, takes_latents: bool = False) -> str | None:
        """Return the path of the key's image or, if they will do, its latents; None without either."""
        return self._image(key) or (self._latents(key) if takes_latents else None)

    def _image(self, key: str) -> str | None:
        """Return the key itself, or a file in the image folder."""
        folder, name = os.path.split(key)
        if (folder or self._image_dir is None) and name in self._listed(folder).images:
            return key
        if self._image_dir is None:
            return None
        folder, name = os.path.split(os.path.join(self._image_dir, key))
        found = self._listed(folder).named(name)
        return os.path.join(folder, found) if found else None

    def _latents(self, key: str) -> str | None:
        """Return the file of latents beside the key, or of that name in the image folder."""
        beside = os.path.splitext(key)[0]
        places = [beside] if os.path.dirname(key) or self._image_dir is None else []
        if self._image_dir is not None:
            places += [os.path.join(self._image_dir, name) for name in (key, beside)]
        return next(filter(None, map(self._latents_of, places)), None)

    def _latents_of(self, base: str) -> str | None:
        folder, name = os.path.split(base)
        found = self._listed(folder).latents.get(name)
        return os.path.join(folder, found) if found else None


class _Listing(NamedTuple):
    """The images in a folder; names of images and latents by stem, of several with a stem the first."""

    images: frozenset[str]
    by_stem: dict[str, str]
    latents: dict[str, str]

    @classmethod
    def of(cls, folder: str, latents_ending: str) -> _Listing:
        try:
            names = sorted(os.listdir(folder or "."), reverse=True)
        except OSError:
            names = []
        images = [name for name in names if is_image(name)]
        latents = latent_only_images.by_stem(names, latents_ending)
        return cls(frozenset(images), {os.path.splitext(name)[0]: name for name in images}, latents)

    def named(self, name: str) -> str | None:
        return name if name in self.images else self.by_stem.get(name)
