"""The kinds of subsets, told apart by keys that only some of them have.

A *folder* holds images with a caption file each (DreamBooth), a *metadata* subset has all its captions in
one JSON file (fine-tuning). A folder whose images have partners is a *control* subset, or a *mask* subset if
masks are among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

Kind = Literal["folder", "metadata", "mask", "control"]

ALL: tuple[Kind, ...] = ("folder", "metadata", "mask", "control")

DESCRIBED: Mapping[Kind, str] = {
    "folder": "plain folders of images",
    "metadata": "subsets with metadata_file",
    "mask": "subsets with a folder of masks",
    "control": "subsets with a folder of control images",
}
"""Each kind in words, for messages."""


def kind_of(subset: Mapping[str, Any]) -> Kind:
    """Return the kind of the subset that has these keys."""
    if "metadata_file" in subset:
        return "metadata"
    if "mask_dir" in subset:
        return "mask"
    return "control" if "control_dir" in subset else "folder"


def are_compatible(kinds: Iterable[Kind]) -> bool:
    """Whether subsets of these kinds may be in one data set: metadata files stay among themselves."""
    return len({kind == "metadata" for kind in kinds}) < 2
