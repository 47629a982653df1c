"""Tiny taggers in ONNX files: the brightness of an image chooses the row of a table that they answer with."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIDE = 8
NUMBERS = {"Rating": 9, "General": 0, "Character": 4}


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (32, 32)) -> list[Path]:
    """Write images of one colour each, that of their number."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"p{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("RGB", size, (number,) * 3).save(path)
    return paths


def write_tagger(
    folder: Path, tags: Sequence[tuple[str, str]], rows: Sequence[Sequence[float]], batch: int | None = None
) -> Path:
    """Write a tagger of the usual layout.

    Args:
        tags: name and category of each output.
        rows: outputs for images of brightness 0, 1, 2 ...
        batch: how many images it takes; any number where None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_graph(folder / "model.onnx", rows, [batch, SIDE, SIDE, 3], is_signed=False)
    with (folder / "selected_tags.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["tag_id", "name", "category", "count"])
        lines.writerows([at, name, NUMBERS[category], 1] for at, (name, category) in enumerate(tags))
    return folder


def write_signed_tagger(
    folder: Path, tags: Sequence[tuple[str, str]], rows: Sequence[Sequence[float]]
) -> Path:
    """Write a tagger that takes channels first in [-1, 1] and answers with logits."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_graph(folder / "model_optimized.onnx", rows, [None, 3, SIDE, SIDE], is_signed=True)
    mapping = {str(at): {"tag": name, "category": category} for at, (name, category) in enumerate(tags)}
    (folder / "tag_mapping.json").write_text(json.dumps(mapping), "utf-8")
    return folder


def _write_graph(
    path: Path, rows: Sequence[Sequence[float]], shape: Sequence[int | None], *, is_signed: bool
) -> None:
    onnx = pytest.importorskip("onnx", reason="taggers for tests are made by the package onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    constants = {
        "table": np.array(rows, np.float32),
        "shift": np.array(1.0 if is_signed else 0.0, np.float32),
        "scale": np.array(127.5 if is_signed else 1.0, np.float32),
        "axes": np.array([1, 2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Add", ["image", "shift"], ["shifted"]),
        helper.make_node("Mul", ["shifted", "scale"], ["levels"]),
        helper.make_node("ReduceMean", ["levels", "axes"], ["mean"], keepdims=0),
        helper.make_node("Round", ["mean"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["row"], to=kinds.INT64),
        helper.make_node("Gather", ["table", "row"], ["tags"], axis=0),
    ]
    dims = ["batch" if side is None else side for side in shape]
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("image", kinds.FLOAT, dims)],
        [helper.make_tensor_value_info("tags", kinds.FLOAT, [dims[0], len(rows[0])])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path))
