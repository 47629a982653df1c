"""What an adapter file holds, told by the names and shapes of its tensors: kinds, and how large they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.adapters.files import other_programs
from sfumato.checkpoints.header import read_header
from sfumato.checkpoints.pickles import SUFFIXES as PICKLE_SUFFIXES

Shape = tuple[int, ...]

_KINDS = {
    "lora_down": "LoRA",
    "lora_A": "LoRA",
    "hada_w1_b": "LoHa",
    "lokr_w1": "LoKr",
    "lokr_w1_a": "LoKr",
    "oft_blocks": "OFT",
}
"""The kind of adapter that has a tensor of this name, up to its first dot."""
_BY_RANK = ("lora_down", "lora_A", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")
"""Tensors whose first side is the rank."""


@dataclass(frozen=True)
class LayerSize:
    """The size of one layer's adapter.

    Attributes:
        kind: `LoRA`, `LoHa`, `LoKr` or `OFT`; empty if it is none of them.
        rank: None of rotations, and where both factors of a LoKr are whole.
        blocks: number of blocks and their size, for each projection that is rotated.
    """

    kind: str
    rank: int | None = None
    blocks: tuple[tuple[int, int], ...] = ()


def size_of(shapes: Mapping[str, Shape]) -> LayerSize:
    """Return the size of one layer's adapter.

    Args:
        shapes: of its tensors, by their names within the layer.
    """
    firsts = {name.partition(".")[0]: shape for name, shape in shapes.items()}
    kind = next((_KINDS[first] for first in firsts if first in _KINDS), "")
    if kind == "OFT":
        blocks = [shape[:2] for name, shape in shapes.items() if name.startswith("oft_blocks")]
        return LayerSize(kind, None, tuple((shape[0], shape[1]) for shape in blocks))
    return LayerSize(kind, next((firsts[name][0] for name in _BY_RANK if name in firsts), None))


def told(sizes: Iterable[LayerSize]) -> str:
    """Return what the sizes of layers of one kind are: `4-16`, `whole`, or `4x16` for 4 blocks of 16."""
    ranks = {size.rank for size in sizes if size.rank is not None}
    blocks = {block for size in sizes for block in size.blocks}
    words = [spread(sorted(ranks))] if ranks else []
    if blocks:
        counts, widths = (sorted(set(numbers)) for numbers in zip(*blocks, strict=True))
        words.append(f"{spread(counts)}x{spread(widths)}")
    if any(size.kind == "LoKr" and size.rank is None for size in sizes):
        words.append("whole")
    return ", ".join(words) or "-"


def spread(values: Sequence[float]) -> str:
    """Return the smallest and the largest of numbers as text: `4-16`, or `4` if they are the same."""
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"


def describe(shapes: Mapping[str, Shape]) -> str:
    """Return kinds and sizes of a file's layers: `LoRA of rank 4 in 76 layers`.

    Args:
        shapes: of all tensors, by their keys in the file.
    """
    kinds: dict[str, list[LayerSize]] = defaultdict(list)
    for name, keys in other_programs.by_layer(shapes).items():
        size = size_of({key.removeprefix(f"{name}."): shapes[key] for key in keys})
        kinds[size.kind or "something else"].append(size)
    return ", ".join(_described(kind, sizes) for kind, sizes in kinds.items())


def _described(kind: str, sizes: Sequence[LayerSize]) -> str:
    size = told(sizes)
    of = "" if size == "-" else f" of {'blocks' if kind == 'OFT' else 'rank'} {size}"
    return f"{kind}{of} in {len(sizes)} layer{'s' if len(sizes) > 1 else ''}"


def describe_file(path: Path) -> str | None:
    """Return kinds, sizes and who loads a file; None for pickled files, which would have to be loaded."""
    if path.suffix.lower() in PICKLE_SUFFIXES or not path.is_file():
        return None
    shapes = {name: info.shape for name, info in read_header(path).tensors.items()}
    return f"{describe(shapes)}; {other_programs.describe(list(shapes))}"
