"""Say what an adapter file holds: kind, ranks, how much each block changes, and who can load it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sfumato.adapters.files.dialects.reading import by_layer, kind_of
from sfumato.adapters.files.programs.told import verdicts
from sfumato.adapters.files.programs.verdict import Verdict
from sfumato.adapters.files.shapes import told_shape
from sfumato.adapters.files.sizes import LayerSize, shapes_of, size_of, spread, told
from sfumato.adapters.files.soundness import require_well_formed
from sfumato.adapters.layers import kinds
from sfumato.adapters.layers.kinds import Kind
from sfumato.adapters.layers.layer import ChangesParameters, LimitsNorm, TurnsWeight
from sfumato.adapters.network.loading import layers_from
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.checkpoints.finite import is_finite
from sfumato.checkpoints.tensors import TensorReader, open_tensors
from sfumato.config.run.run import Run
from sfumato.config.tools.checking import CheckingConfig
from sfumato.errors import UserError
from sfumato.log import counted
from sfumato.models.components import foreign_adapters
from sfumato.models.components.loading import shapes_of as shapes_in
from sfumato.models.components.recognise import recognise
from sfumato.models.interface.targets import AdapterTarget
from sfumato.nn.precision import name_of

_SAID = {
    "modelspec.title": "title",
    "ss_base_model_version": "base",
    "ss_network_module": "module",
    "ss_network_args": "arguments",
    "modelspec.date": "date",
    "ss_steps": "steps",
    "ss_epoch": "epoch",
    "ss_training_comment": "comment",
    "modelspec.merged_from": "merged from",
}
"""Metadata that is worth a line, with the word for it."""

_BLOCK = re.compile(r"(?:lycoris_)?((?:unet_)?.*?(?:blocks?[._]\d+(?:_\d+)?|mid_block))[._]")
_TEXT = re.compile(r"(te\d?)_|(text_encoder\w*)\.")


@dataclass
class Block:
    """What is known of one block's layers.

    Attributes:
        norms: Frobenius norms of the layers' changes, where the file alone tells them.
        turns: of rotations, how large the change is, relative to the weight that they turn.
    """

    sizes: list[LayerSize] = field(default_factory=list)
    alphas: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)


@dataclass
class Loaded:
    """What one program makes of a file.

    Attributes:
        tensors: how many take effect.
        left_out: one that does not.
        refusal: why the program refuses the file; "" if it does not.
        remarks: what acts otherwise there than here.
    """

    tensors: int
    left_out: str | None
    refusal: str
    remarks: tuple[str, ...]


@dataclass
class AdapterReport:
    """What there is to say of a file.

    Attributes:
        kind: with its article.
        formats: how many tensors there are of each dtype, the most frequent first.
        loaded: for each program, what it makes of the file.
        blocks: by their names, in order.
        broken: tensors that hold numbers that are not finite.
    """

    file: str
    kind: str
    num_layers: int
    num_tensors: int
    size_bytes: int
    formats: dict[str, int]
    loaded: dict[str, Loaded]
    metadata: dict[str, str]
    blocks: dict[str, Block]
    broken: list[str]


def check_adapter(run: Run) -> str:
    """Return the report on the file that the run names, as text or as JSON.

    Raises:
        UserError: the file is missing, broken or no adapter.
    """
    options = run[CheckingConfig]
    path = Path(options.file)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give an adapter file")
    with open_tensors(path) as reader:
        report = reported(path, reader)
        if options.json:
            return json.dumps(_plain(report), indent=2)
        lines = [*_head(report), "", *_table(report.blocks)]
        if report.broken:
            lines += [
                "",
                f"{counted(len(report.broken), 'tensor holds', 'tensors hold')} numbers that are not finite: "
                f"{report.broken[0]} ...",
            ]
        off = sum(alpha == 0 for block in report.blocks.values() for alpha in block.alphas)
        if off:
            lines += ["", f"{counted(off, 'layer is', 'layers are')} switched off: alpha 0"]
        if options.show_all_keys:
            lines += ["", *_tensors(reader)]
    return "\n".join(lines)


def reported(path: Path, reader: TensorReader) -> AdapterReport:
    """Return what there is to say of an open file; raise UserError if it is no adapter, or damaged."""
    keys, tensors = reader.keys(), dict(reader.items())
    layers = by_layer(tensors)
    foreign_adapters.refuse(path, shapes_of(tensors))
    if kind_of(layers) is None:
        other = recognise(shapes_in(reader))
        what = f"seems to be {other.description}" if other else "holds no adapter that is known"
        raise UserError(f"{path} {what}; give an adapter file")
    require_well_formed(path, layers)
    return AdapterReport(
        str(path),
        _kind_in_words(layers),
        len(layers),
        len(keys),
        path.stat().st_size,
        dict(Counter(name_of(reader.dtype(key)) for key in keys).most_common()),
        {name: _loaded(verdict, keys) for name, verdict in verdicts(shapes_in(reader)).items()},
        reader.metadata,
        _blocks(path, layers),
        [key for key, tensor in tensors.items() if not is_finite(tensor)],
    )


def _kind_in_words(layers: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Return what most layers are, with its article."""
    told = Counter(kind.description for kind in map(kinds.told_by, layers.values()) if kind)
    return max(told, key=told.__getitem__, default="an adapter")


def _loaded(verdict: Verdict, keys: Sequence[str]) -> Loaded:
    left_out = next((key for key in keys if key not in verdict.loaded), None)
    return Loaded(len(verdict.loaded), left_out, verdict.refusal, verdict.remarks)


def _blocks(path: Path, layers: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Block]:
    """Return what there is of each block, sorted by numbers."""
    blocks: dict[str, Block] = defaultdict(Block)
    for name, leaves in layers.items():
        kind = kinds.told_by(leaves)
        block = blocks[_block_of(_bare(name, kind))]
        block.sizes.append(size_of(shapes_of(leaves)))
        if "alpha" in leaves and _scales(leaves, name):
            block.alphas.append(float(leaves["alpha"]))
        if kind and all(map(is_finite, leaves.values())):
            _measure(path, name, kind, leaves, block)
    return {name: blocks[name] for name in sorted(blocks, key=_by_number)}


def _scales(leaves: Mapping[str, Tensor], name: str) -> bool:
    """Return whether an alpha of 0 switches a layer off; to some kinds it only sets no limit."""
    kind = kinds.loading(leaves, name)
    return kind is None or kind.files.is_off_at_0


def _measure(path: Path, name: str, kind: Kind, tensors: Mapping[str, Tensor], block: Block) -> None:
    """Add how much a layer changes its weight, if its tensors are all known and tell."""
    target = _stand_in(name, kind, tensors) if kind.files.can_load(tensors) else None
    if target is None:
        return
    full = kind.prefix + target.name
    layer = layers_from(path, {full: tensors}, [target])[0]
    assert isinstance(layer, nn.Module)
    own = layer.state_dict()
    if tensors.keys() | {"alpha"} != own.keys() | {"alpha"}:
        return
    AdapterNetwork([layer]).load_layers(path, {full: {**own, **tensors}})
    if isinstance(layer, TurnsWeight):
        block.turns.append(layer.turned_share().item())
    elif isinstance(layer, LimitsNorm):
        block.norms.append(layer.norm().item())
    elif isinstance(layer, ChangesParameters) and not kind.files.needs_weight:
        block.norms.append(layer.delta().norm().item())


def _stand_in(name: str, kind: Kind, tensors: Mapping[str, Tensor]) -> AdapterTarget | None:
    """Return a layer without numbers that fits the tensors of an adapter; None if they do not tell.

    What a kernel is does not matter to norms, so that layers that leave it open count as Linear.
    """
    short, blocks = _bare(name, kind).replace(".", "_"), size_of(shapes_of(tensors)).blocks
    if blocks and name.startswith(kind.prefix):
        widths = tuple(count * size for count, size in blocks)
        return AdapterTarget(short, nn.Linear(1, sum(widths), device="meta"), "", splits=widths)
    shape = told_shape(name, tensors)
    if shape is None:
        return None
    return AdapterTarget(short, dataclasses.replace(shape, kernel=shape.kernel or ()).module(), "")


def _bare(name: str, kind: Kind | None) -> str:
    """Return a layer's name without the prefix of an adapter's kind."""
    known = (*((kind.prefix,) if kind else ()), *kinds.prefixes())
    return name.removeprefix(next((prefix for prefix in known if name.startswith(prefix)), ""))


def _block_of(layer: str) -> str:
    """Return the block that a layer lies in, by its name without a prefix."""
    if match := _TEXT.match(layer):
        return match[1] or match[2]
    match = _BLOCK.match(f"{layer}_")
    return match[1] if match else "other layers"


def _by_number(block: str) -> list[tuple[int, str]]:
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", block)]


def _head(report: AdapterReport) -> Iterator[str]:
    size = f"{report.size_bytes / 1e6:.1f} MB"
    yield f"{report.file}: {report.kind} of {report.num_layers} layers, {size}, {', '.join(report.formats)}"
    for name, loaded in report.loaded.items():
        yield f"  {name} {_told_of(loaded, report.num_tensors)}"
        yield from (f"    {remark}" for remark in loaded.remarks)
    for key, word in _SAID.items():
        if report.metadata.get(key) not in (None, "", "None"):
            yield f"  {word}: {report.metadata[key]}"
    if report.metadata:
        yield f"  {len(report.metadata)} entries of metadata (sfumato show-metadata shows them)"
    else:
        yield "  no metadata"


def _told_of(loaded: Loaded, num_tensors: int) -> str:
    if loaded.refusal:
        return f"refuses the file: {loaded.refusal}"
    lost = f"; not {loaded.left_out} ..." if loaded.left_out else ""
    return f"loads {loaded.tensors} of {num_tensors} tensors{lost}"


def _table(blocks: Mapping[str, Block]) -> Iterator[str]:
    """Yield a line for each block; sizes of rotations are numbers of blocks times their sizes."""
    rows = [("block", "layers", "rank", "alpha", "norm of the change: mean, largest")]
    for name, block in blocks.items():
        sizes = told(block.sizes), spread(block.alphas)
        rows.append((name, str(len(block.sizes)), *sizes, _changes(block)))
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    for *cells, last in rows:
        yield "  ".join([*(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)), last])


def _changes(block: Block) -> str:
    words = []
    if block.norms:
        words.append(f"{sum(block.norms) / len(block.norms):.4g}, {max(block.norms):.4g}")
    if block.turns:
        mean, largest = sum(block.turns) / len(block.turns), max(block.turns)
        words.append(f"{100 * mean:.4g} %, {100 * largest:.4g} % of the weight's")
    return "; ".join(words) or "-"


def _plain(report: AdapterReport) -> dict[str, Any]:
    """Return a report as JSON has it: numbers that are not finite, which JSON lacks, are null."""
    plain = dataclasses.asdict(report)
    for block in plain["blocks"].values():
        for name in ("alphas", "norms", "turns"):
            block[name] = [value if math.isfinite(value) else None for value in block[name]]
    return plain


def _tensors(reader: TensorReader) -> Iterator[str]:
    for key in reader.keys():  # noqa: SIM118 - a reader is no mapping
        value = reader.get(key).float().abs()
        shape = "x".join(map(str, value.shape)) or "a number"
        yield f"{key}  {shape}  mean |x| {float(value.mean()):.4g}, max |x| {float(value.max()):.4g}"
