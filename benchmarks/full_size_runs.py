"""Runs of full-size models, counted byte by byte: the models are files that are made of holes.

Headers have the published names, dtypes and shapes, and there is no data behind them. Such files take no room
on the disk, and what `sfumato account` counts of them is what it counts of the real ones.
"""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from sfumato.cli.options.parse import parse
from sfumato.cli.scripts import script_named
from sfumato.config.rules.evaluation import imply
from sfumato.config.rules.tables import rules_of
from sfumato.config.run.distributed import DistributedConfig
from sfumato.training.core import distributed
from sfumato.training.core.memory_account import Account
from sfumato.training.run.account import account
from sfumato.training.run.setup import prepare

Header = Mapping[str, tuple[str, Sequence[int]]]
"""Dtype and shape of tensors by name."""

WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}
"""Bytes of an element of each dtype."""


def count(script: str, argv: Sequence[str]) -> Account:
    """Return what a script with these options holds on a graphics card, which need not be there."""
    run = parse(script_named(script), list(argv), prog=script).run
    run, _ = imply(run, rules_of(run))
    return account(prepare(run, distributed.start(run[DistributedConfig])), "cuda")


def write_model(path: Path, table: Path) -> None:
    """Write a model's file.

    Args:
        table: packed lines of name, dtype and sides with tabs between them.
    """
    write_header(path, read_table(table))


def read_table(table: Path) -> Header:
    """Return the tensors of a packed table; see `write_model`. A dtype that it does not tell is float16."""
    found = {}
    for line in gzip.decompress(table.read_bytes()).decode().splitlines():
        name, dtype, sides = line.split("\t")
        shape = [] if sides == "scalar" else [int(side) for side in sides.split("x") if side]
        found[name] = dtype.replace("-", "F16"), shape
    return found


def write_header(path: Path, shapes: Header) -> None:
    """Write a file with these tensors."""
    header, end = {}, 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + math.prod(shape) * WIDTHS[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors can be mapped only where they are aligned
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        os.truncate(file.fileno(), 8 + len(encoded) + end)


def write_images(folder: Path, side: int) -> list[str]:
    """Write an image of `side` x `side` for batches of up to eight; return the options that name it."""
    subset = folder / "data" / "8_sks cat"
    subset.mkdir(parents=True)
    Image.new("RGB", (side, side)).save(subset / "0.png")
    return ["--train_data_dir", str(folder / "data"), "--caption_extension", ".txt"]
