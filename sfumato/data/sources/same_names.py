"""Images whose names differ by the suffix alone: what lies beside one of them belongs to all."""

from __future__ import annotations

from collections.abc import Sequence

from sfumato.data.images.images import stem
from sfumato.data.sources.complaints import Complaints


def name_twins(folder: str, images: Sequence[str], complaints: Complaints) -> None:
    """Say which images share a name: `a.png` and `a.jpg` have one caption, one mask and one cache."""
    if len(set(map(stem, images))) == len(images):
        return
    by_stem: dict[str, list[str]] = {}
    for name in images:
        by_stem.setdefault(stem(name), []).append(name)
    twins = [names for names in by_stem.values() if len(names) > 1]
    complaints.warn(
        f"images in {folder} share names, and with them captions, masks and cache files, the first are "
        f"{' and '.join(twins[0])}; give them different names",
        [name for names in twins for name in names],
        "same name",
    )
