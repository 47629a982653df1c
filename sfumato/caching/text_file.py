"""What one cache file of texts holds, under the names that sd-scripts gives it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor, cat

from sfumato.caching import store
from sfumato.caching.store import Arrays, Record, Shapes
from sfumato.models.interface.latents import JoinedOutputs

Joined = tuple[JoinedOutputs, ...]
"""The outputs that files hold side by side; see `CacheFormat`."""


def read(path: Path, names: Collection[str], joined: Joined = ()) -> Arrays:
    """Return those of the named outputs that the file has, taken apart where it holds two as one.

    Raises:
        BrokenCacheError: as `store.read` has it.
    """
    arrays = store.read(path, _asked_for(names, joined))
    for pair in joined:
        if (whole := arrays.pop(pair.name, None)) is not None:
            parts = whole[..., : pair.width], whole[..., pair.width :]
            arrays |= {n: part for n, part in zip(pair.outputs, parts, strict=True) if n in names}
    return arrays


def contents(path: Path, names: Collection[str], joined: Joined = ()) -> tuple[Shapes, Record | None]:
    """Return the shapes of those of the named outputs that the file has, and its record if there is one.

    Raises:
        BrokenCacheError: as `store.contents` has it.
    """
    shapes, record = store.contents(path, _asked_for(names, joined))
    for pair in joined:
        if whole := shapes.pop(pair.name, None):
            widths = pair.width, max(whole[-1] - pair.width, 0)
            shapes |= {name: (*whole[:-1], width) for name, width in zip(pair.outputs, widths, strict=True)}
    return {name: shape for name, shape in shapes.items() if name in names}, record


def as_held(outputs: Mapping[str, Tensor], joined: Joined = ()) -> dict[str, Tensor]:
    """Return outputs, (...) each, as a file holds them: side by side where both of a pair are there."""
    held = dict(outputs)
    for pair in joined:
        if all(name in held for name in pair.outputs):
            first, second = (held.pop(name) for name in pair.outputs)
            held[pair.name] = cat([first, second.to(first.dtype)], dim=-1)
    return held


def _asked_for(names: Collection[str], joined: Joined) -> list[str]:
    return [*names, *(pair.name for pair in joined if set(pair.outputs) & set(names))]
