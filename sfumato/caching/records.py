"""What cached outputs were made from, and whether they serve for what this run would make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import torch

from sfumato.caching.store import Record, Shapes
from sfumato.log import counted

IMAGE, MASK = "picture", "mask"
OTHER_OPTIONS = "of other options"
SHAPES = "shapes"

_ROUNDING = {
    str(dtype): torch.finfo(dtype).eps
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
}
_LATENTS = {
    IMAGE: "of changed images",
    "vae": "of another VAE",
    "resized": "of another size",
    "bucket": "of another size",
    "interpolation": "resized in another way",
    "alpha": "with another mask",
    MASK: "with another mask",
}


def latents_differ(found: Record, wanted: Record) -> str:
    """Return what is wrong with latents of which `found` is the record; "" if they serve.

    They serve where they were computed in finer numbers than are asked for, and where they were made with a
    mask that is not asked for: it changes no latents.
    """
    for name, told in _LATENTS.items():
        if found.get(name) != wanted.get(name) and not (name == MASK and MASK not in wanted):
            return told
    if found.keys() - {MASK} != wanted.keys() - {MASK}:
        return OTHER_OPTIONS
    return _coarser(found["dtype"], wanted["dtype"])


def texts_differ(found: Record, wanted: Record, encoders: Collection[str], shapes: Shapes) -> str:
    """Return what is wrong with outputs of text encoders of which `found` is the record; "" if they serve.

    Args:
        encoders: those that are asked for; the file may hold the outputs of more.
        shapes: that the outputs have; records of version 0.1 do not tell which they should have.
    """
    told = found.get(SHAPES, {})
    if not isinstance(told, dict) or any(told.get(x, [*shape]) != [*shape] for x, shape in shapes.items()):
        return "of other shapes than when they were made"
    if found.get("caption") != wanted["caption"]:
        return "of changed captions"
    there = found.get("encoders")
    if found.get("extras") != wanted["extras"] or not isinstance(there, dict):
        return OTHER_OPTIONS
    return next(filter(None, (_encoder_differs(there.get(x), wanted["encoders"][x]) for x in encoders)), "")


def told(reasons: Counter[str]) -> str:
    """Return reasons with their numbers, the most frequent one first."""
    return ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())


def made_again(reasons: Counter[str], cache: str) -> str:
    """Return the line that says which caches, of one sort (`latent cache`), are made again and why."""
    total = reasons.total()
    return f"{counted(total, cache)} {'is' if total == 1 else 'are'} made again: {told(reasons)}"


def _encoder_differs(found: Any, wanted: Sequence[Any]) -> str:
    """Compare [file, dtype, number of positions, marks ...] of an encoder."""
    if not isinstance(found, list) or len(found) < len(wanted):
        return OTHER_OPTIONS
    if found[0] != wanted[0]:
        return "of another text encoder"
    return OTHER_OPTIONS if found[2:] != [*wanted[2:]] else _coarser(found[1], wanted[1])


def _coarser(found: Any, wanted: str) -> str:
    """Compare dtypes: float32 serves for float16, and that for bfloat16, which rounds more coarsely."""
    if found == wanted or _ROUNDING.get(str(found), 1) <= _ROUNDING.get(wanted, 0):
        return ""
    return f"computed in {found} instead of {wanted}".replace("torch.", "")
