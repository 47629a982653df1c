"""Say what an adapter file holds: kind, ranks, how much each block changes, and who can load it."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from sfumato.adapters import consumers
from sfumato.checkpoints.tensors import TensorReader, open_tensors
from sfumato.config.checking import CheckingConfig
from sfumato.config.run import Run
from sfumato.errors import UserError
from sfumato.models.loading import shapes_of
from sfumato.models.recognise import recognise
from sfumato.nn.precision import name_of

_ADAPTERS = ("a LoRA", "a LoHa", "a LoKr", "an OFT network")
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

_HALVES = (
    ("lora_down.weight", "lora_up.weight"),
    ("lora_A.weight", "lora_B.weight"),
)
_BLOCK = re.compile(r"(?:(?:lora|oft|lycoris)_)?((?:unet_)?.*?blocks?[._]\d+(?:_\d+)?)[._]")
_DOTTED_OWNERS = ("transformer.", "unet.", "text_encoder", "diffusion_model.")
_DOTTED = re.compile(r"\.(?:lora|hada|lokr|alpha|dora|diff|oft)")
_TEXT = re.compile(r"(?:lora_|oft_)?(te\d?)_|(text_encoder\w*)\.")


@dataclass
class Block:
    """What is known of one block's layers.

    Attributes:
        norms: of the layers' changes, where they are products.
    """

    num_layers: int = 0
    ranks: list[int] = field(default_factory=list)
    alphas: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)


def check_adapter(run: Run) -> str:
    """Return the report on the file that the run names.

    Raises:
        UserError: the file is missing, broken or no adapter.
    """
    options = run[CheckingConfig]
    path = Path(options.file)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give an adapter file")
    with open_tensors(path) as reader:
        shapes = shapes_of(reader)
        kind = recognise(shapes)
        if kind is None or kind.description not in _ADAPTERS:
            what = f"seems to be {kind.description}" if kind else "holds no adapter that is known"
            raise UserError(f"{path} {what}; give an adapter file")
        lines = [*_head(path, kind.description, reader), *_metadata(reader.metadata)]
        layers = _layers(reader.keys())
        blocks, broken = _blocks(reader, layers)
        lines += ["", *_table(blocks)]
        if broken:
            lines += ["", f"{len(broken)} tensors hold numbers that are not finite: {broken[0]} ..."]
        if options.show_all_keys:
            lines += ["", *_tensors(reader)]
    return "\n".join(lines)


def _head(path: Path, what: str, reader: TensorReader) -> Iterator[str]:
    keys = reader.keys()
    formats = Counter(name_of(reader.dtype(key)) for key in keys)
    count = len(_layers(keys))
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    yield f"{path}: {what} of {count} layers, {size}, {', '.join(dict(formats.most_common()))}"
    for consumer in consumers.CONSUMERS:
        loaded = set(consumer.loaded(keys))
        rest = next((key for key in keys if key not in loaded), None)
        lost = f"; not {rest} ..." if rest else ""
        yield f"  {consumer.name} loads {len(loaded)} of {len(keys)} tensors{lost}"


def _metadata(metadata: Mapping[str, str]) -> Iterator[str]:
    for key, word in _SAID.items():
        if metadata.get(key) not in (None, "", "None"):
            yield f"  {word}: {metadata[key]}"
    if metadata:
        yield f"  {len(metadata)} entries of metadata (sfumato show-metadata shows them)"
    else:
        yield "  no metadata"


def _layers(keys: Sequence[str]) -> dict[str, list[str]]:
    """Return the tensors of each layer; layers of diffusers' naming have dots in their names."""
    layers: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        name = _DOTTED.split(key)[0] if key.startswith(_DOTTED_OWNERS) else key.partition(".")[0]
        layers[name].append(key)
    return layers


def _blocks(reader: TensorReader, layers: Mapping[str, Sequence[str]]) -> tuple[dict[str, Block], list[str]]:
    """Return what there is of each block, sorted by numbers, and the tensors that are broken."""
    blocks: dict[str, Block] = defaultdict(Block)
    broken: list[str] = []
    for name, keys in layers.items():
        tensors = {key.removeprefix(f"{name}."): reader.get(key) for key in keys}
        broken += [
            key for key in keys if not bool(tensors[key.removeprefix(f"{name}.")].float().isfinite().all())
        ]
        _add(blocks[_block_of(name)], tensors)
    return {name: blocks[name] for name in sorted(blocks, key=_by_number)}, broken


def _add(block: Block, tensors: Mapping[str, Tensor]) -> None:
    block.num_layers += 1
    alpha = float(tensors["alpha"]) if "alpha" in tensors else None
    if alpha is not None:
        block.alphas.append(alpha)
    for down_name, up_name in _HALVES:
        if down_name in tensors and up_name in tensors:
            down, up = (tensors[half].float().flatten(1) for half in (down_name, up_name))
            rank = down.shape[0]
            block.ranks.append(rank)
            squared = float(((up.T @ up) * (down @ down.T)).sum())  # of the product, which is never made
            block.norms.append(math.sqrt(max(0.0, squared)) * abs(alpha or rank) / rank)
            return
    block.ranks += [tensor.shape[0] for key, tensor in tensors.items() if key in ("hada_w1_b", "lokr_w2_b")]


def _block_of(layer: str) -> str:
    if match := _TEXT.match(layer):
        return match[1] or match[2]
    match = _BLOCK.match(f"{layer}_")
    return match[1] if match else "other layers"


def _by_number(block: str) -> list[tuple[int, str]]:
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", block)]


def _table(blocks: Mapping[str, Block]) -> Iterator[str]:
    width = max((len(name) for name in blocks), default=0)
    yield f"{'block':{width}}  layers  rank      alpha     norm of the change: mean, largest"
    for name, block in blocks.items():
        norms = f"{sum(block.norms) / len(block.norms):.4g}, {max(block.norms):.4g}" if block.norms else "-"
        sizes = f"{_range(block.ranks):8}  {_range(block.alphas):8}"
        yield f"{name:{width}}  {block.num_layers:<6}  {sizes}  {norms}"


def _range(values: Sequence[float]) -> str:
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"


def _tensors(reader: TensorReader) -> Iterator[str]:
    for key in reader.keys():  # noqa: SIM118 - a reader is no mapping
        value = reader.get(key).float().abs()
        shape = "x".join(map(str, value.shape)) or "a number"
        yield f"{key}  {shape}  mean |x| {float(value.mean()):.4g}, max |x| {float(value.max()):.4g}"
