"""What an adapter file holds, told by the names and shapes of its tensors: kinds, and how large they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sfumato.adapters.files.dialects.suffixes import split
from sfumato.adapters.files.programs import told as told_programs
from sfumato.adapters.layers import kinds
from sfumato.checkpoints.header import read_header
from sfumato.checkpoints.pickles import SUFFIXES as PICKLE_SUFFIXES

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerSize:
    """The size of one layer's adapter.

    Attributes:
        kind: its title, `LoRA` for example; empty if it is of none that is known.
        rank: None where it has none.
        blocks: number of blocks and their size, for each projection that is rotated.
    """

    kind: str
    rank: int | None = None
    blocks: tuple[tuple[int, int], ...] = ()


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Return the shapes of tensors by their names."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def size_of(shapes: Mapping[str, Shape]) -> LayerSize:
    """Return the size of one layer's adapter.

    Args:
        shapes: of its tensors, by their names within the layer.
    """
    kind = kinds.told_by(shapes)
    if kind is None:
        return LayerSize("")
    firsts = [(name.partition(".")[0], shape) for name, shape in shapes.items()]
    ranks = [shape[0] for name, shape in firsts if name in kind.files.ranks]
    blocks = [(shape[0], shape[1]) for name, shape in firsts if name in kind.files.blocks]
    return LayerSize(kind.title, ranks[0] if ranks else None, tuple(blocks))


def told(sizes: Iterable[LayerSize]) -> str:
    """Return what the sizes of layers of one kind are: `4-16`, `whole`, or `4x16` for 4 blocks of 16."""
    ranks = {size.rank for size in sizes if size.rank is not None}
    blocks = {block for size in sizes for block in size.blocks}
    words = [spread(sorted(ranks))] if ranks else []
    if blocks:
        counts, widths = (sorted(set(numbers)) for numbers in zip(*blocks, strict=True))
        words.append(f"{spread(counts)}x{spread(widths)}")
    if any(size.rank is None and _has_ranks(size.kind) for size in sizes):
        words.append("whole")
    return ", ".join(words) or "-"


def _has_ranks(title: str) -> bool:
    kind = kinds.titled(title)
    return kind is not None and bool(kind.files.ranks)


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
    layers: dict[str, dict[str, Shape]] = defaultdict(dict)
    for key, shape in shapes.items():
        found = split(key)
        layers[found.path][found.leaf] = shape
    for own in layers.values():
        size = size_of(own)
        kinds[size.kind or "something else"].append(size)
    return ", ".join(_described(kind, sizes) for kind, sizes in kinds.items())


def _described(kind: str, sizes: Sequence[LayerSize]) -> str:
    size = told(sizes)
    has_blocks = any(each.blocks for each in sizes)
    of = "" if size == "-" else f" of {'blocks' if has_blocks else 'rank'} {size}"
    return f"{kind}{of} in {len(sizes)} layer{'s' if len(sizes) > 1 else ''}"


def describe_file(path: Path) -> str | None:
    """Return kinds, sizes and who loads a file; None for pickled files, which would have to be loaded."""
    if path.suffix.lower() in PICKLE_SUFFIXES or not path.is_file():
        return None
    shapes = {name: info.shape for name, info in read_header(path).tensors.items()}
    return f"{describe(shapes)}; {told_programs.describe(shapes)}"
