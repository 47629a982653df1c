"""Inputs and weights of recorded cases, derived from their names."""

import gzip
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

HERE = Path(__file__).parent


def cases(name: str) -> list[dict[str, Any]]:
    """Return the recorded settings of one fixture."""
    return settings(name)["cases"]


def settings(name: str) -> dict[str, Any]:
    """Return one fixture's JSON."""
    return json.loads(gzip.decompress((HERE / f"{name}.json.gz").read_bytes()))


def rule(key: str, shape: tuple[int, ...]) -> Tensor:
    """Return the normal numbers that belong to a key."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little")
    generator = np.random.Generator(np.random.PCG64(seed))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


def inputs(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return one input of a case."""
    return rule(f"input:{name}", shape)


def weight(name: str, shape: tuple[int, ...], std: float) -> Tensor:
    """Return one weight of a model."""
    values = rule(name, shape) * np.float32(std)
    return 1 + values if len(shape) == 1 and name.endswith(("weight", "scale")) else values


def error(actual: Tensor, expected: Tensor | list[float]) -> float:
    """Return the largest difference relative to the largest expected number."""
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == wanted.shape
    return float((actual.double() - wanted).abs().max() / wanted.abs().max())


def assert_recorded(actual: Tensor, numbers: Mapping[str, Tensor], name: str, tolerance: float) -> None:
    """Compare a tensor with what is recorded of it: all, or, of a large one, samples and its norm."""
    if name in numbers:
        assert error(actual, numbers[name]) < tolerance, name
        return
    first, strided = numbers[f"{name}/first"], numbers[f"{name}/strided"]
    flat, count = actual.flatten(), len(first)
    assert error(flat[:count], first) < tolerance, name
    assert error(flat[:: max(1, flat.numel() // count)][:count], strided) < tolerance, name
    assert flat.double().norm().item() == pytest.approx(numbers[f"{name}/stats"][3].item(), rel=tolerance)
