"""Digests of what decides which image a run sees when: they tell whether two runs have the same data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence

from sfumato.data.batches.image_sets import ImageSet

Fingerprint = Mapping[str, str]
"""Digests by what they are of: `images`, `captions` and `batches`, as far as they are known."""


def of_sets(sets: Sequence[ImageSet]) -> Fingerprint:
    """Return the digests of data sets; folders may have moved, and no file is read.

    `images` are names and sizes in bytes, `batches` what a seed puts in order: buckets, repeats, batch sizes.
    """
    return {
        "images": digest(_image(path, size) for s in sets for path, size in _files(s)),
        "captions": digest(caption for s in sets for caption in s.images.captions),
        "batches": digest(text for s in sets for text in _batches(s)),
    }


def digest(texts: Iterable[str]) -> str:
    """Return 16 hexadecimal digits of texts in their order."""
    found = hashlib.sha256()
    for text in texts:
        found.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return found.hexdigest()[:16]


def _files(image_set: ImageSet) -> Iterable[tuple[str, int]]:
    return zip(image_set.images.paths, image_set.images.num_bytes, strict=True)


def _image(path: str, num_bytes: int) -> str:
    return f"{os.path.basename(path)} {num_bytes}"


def _batches(image_set: ImageSet) -> Iterable[str]:
    yield str(image_set.plan.batch_size)
    for size, showings in sorted(image_set.buckets.items()):
        yield f"{size} {hashlib.sha256(showings.images.tobytes()).hexdigest()}"
