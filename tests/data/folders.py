"""Small folders of images and captions, made on the fly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfumato.data.config.plan import DatasetPlan, SubsetPlan
from sfumato.data.images.buckets import Buckets


def pixels(name: str, width: int, height: int, channels: int = 3) -> np.ndarray:
    """Return noise that depends on the name alone, as the recorded numbers were made from."""
    seed = int.from_bytes(hashlib.sha256(f"input:img:{name}".encode()).digest()[:4], "little")
    noise = np.random.Generator(np.random.PCG64(seed)).standard_normal(
        (height, width, channels), dtype=np.float32
    )
    return np.clip(np.rint(128 + 50 * noise), 0, 255).astype(np.uint8)


def image(path: Path, size: tuple[int, int], caption: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(path.name, *size)).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def folder(path: Path, sizes: Iterable[tuple[int, int]]) -> Path:
    for index, size in enumerate(sizes):
        image(path / f"im{index}.png", size, f"a{index}, b{index}, c{index}, d{index}")
    return path


def plan(*subsets: SubsetPlan, resolution: int = 64, batch_size: int = 2, **options: Any) -> DatasetPlan:
    return DatasetPlan(subsets, Buckets((resolution, resolution), 32, 128, 16), batch_size, **options)


def subset(path: Path, **options: Any) -> SubsetPlan:
    return SubsetPlan(path, **{"caption_extension": ".txt", **options})
