"""The three kinds of subsets, told apart by a key that only one of them has.

A *folder* holds images with a caption file each (DreamBooth), a *metadata* subset has all its captions in
one JSON file (fine-tuning), a *control* subset pairs each image with a control image or a loss mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

Kind = Literal["folder", "metadata", "control"]

ALL: tuple[Kind, ...] = ("folder", "metadata", "control")

DESCRIBED: Mapping[Kind, str] = {
    "folder": "plain folders of images",
    "metadata": "subsets with metadata_file",
    "control": "subsets with conditioning_data_dir",
}
"""Each kind in words, for messages."""


def kind_of(subset: Mapping[str, Any]) -> Kind:
    """Return the kind of the subset that has these keys."""
    if "metadata_file" in subset:
        return "metadata"
    return "control" if "conditioning_data_dir" in subset else "folder"


def are_compatible(kinds: Iterable[Kind]) -> bool:
    """Whether subsets of these kinds may be in one data set: metadata files stay among themselves."""
    return len({kind == "metadata" for kind in kinds}) < 2
