"""Recorded cases: their settings and numbers, and the inputs and weights that are derived from names.

They lie beside this file or, if the variable SFUMATO_GOLDEN names one, in another folder of the same form:
`NAME.json` with a list of cases and `NAME.safetensors` with `CASE/QUANTITY`, each perhaps packed as `.gz`.
Of a large tensor X there are `X/first` and `X/strided`, elements from the start and evenly spread, and
`X/stats`: mean, deviation, largest absolute value, L2 norm. Sizes, seeds and texts are in the cases, so that
other ones can be recorded. Tests whose fixture a folder lacks are skipped.
"""

import gzip
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import Tensor

FOLDER = Path(os.environ.get("SFUMATO_GOLDEN") or Path(__file__).parent)


def exists(name: str) -> bool:
    """Return whether the folder has this fixture."""
    return _read(f"{name}.json") is not None


@cache
def settings(name: str) -> dict[str, Any]:
    """Return one fixture's JSON; it must not be changed."""
    return json.loads(_needed(f"{name}.json"))


def cases(name: str) -> list[dict[str, Any]]:
    """Return the recorded settings of one fixture's cases."""
    return settings(name)["cases"]


@cache
def arrays(name: str) -> dict[str, Tensor]:
    """Return the recorded numbers of one fixture by `CASE/QUANTITY`; they must not be changed."""
    return load(_needed(f"{name}.safetensors"))


def inputs(name: str, shape: Sequence[int]) -> Tensor:
    """Return one input of a case."""
    return rule(f"input:{name}", shape)


def weight(name: str, shape: Sequence[int], std: float) -> Tensor:
    """Return one weight of a model; `name` begins with the `key_prefix` of its fixture."""
    values = rule(name, shape) * np.float32(std)
    return 1 + values if len(shape) == 1 and name.endswith(("weight", "scale")) else values


def rule(key: str, shape: Sequence[int]) -> Tensor:
    """Return the normal numbers that belong to a key."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little")
    generator = np.random.Generator(np.random.PCG64(seed))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


def error(actual: Tensor, expected: Tensor | list[float]) -> float:
    """Return the largest difference relative to the largest expected number."""
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == wanted.shape
    return float((actual.double() - wanted).abs().max() / wanted.abs().max())


def assert_recorded(actual: Tensor, numbers: Mapping[str, Tensor], name: str, tolerance: float) -> None:
    """Compare a tensor with what is recorded of it, relative to the largest number of the whole tensor."""
    actual = actual.detach()
    largest = _stats(numbers, name)[2]
    for ours, recorded in recorded_parts(actual, numbers, name):
        assert float((ours.double() - recorded.double()).abs().max()) <= tolerance * largest, name
    norm = actual.double().norm().item()
    assert norm == pytest.approx(_stats(numbers, name)[3], rel=tolerance), name


def recorded_parts(
    actual: Tensor, numbers: Mapping[str, Tensor], name: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what there is of a recorded tensor, whole or in parts, after the same of another tensor."""
    if name in numbers:
        assert actual.shape == numbers[name].shape, name
        yield actual, numbers[name]
        return
    flat, count = actual.flatten(), len(numbers[f"{name}/first"])
    yield flat[:count], numbers[f"{name}/first"]
    yield flat[:: max(1, flat.numel() // count)][:count], numbers[f"{name}/strided"]


def quantities(numbers: Mapping[str, Tensor], stem: str) -> list[str]:
    """Return the recorded tensors under `stem/`, without it, in the order of their names."""
    names = (name.removeprefix(f"{stem}/") for name in numbers if name.startswith(f"{stem}/"))
    return sorted({_whole(name) for name in names})


def _whole(name: str) -> str:
    stem, _, part = name.rpartition("/")
    return stem if part in ("first", "strided", "stats") and stem else name


def _stats(numbers: Mapping[str, Tensor], name: str) -> list[float]:
    if name in numbers:
        whole = numbers[name].double()
        return [0.0, 0.0, whole.abs().max().item(), whole.norm().item()]
    return numbers[f"{name}/stats"].tolist()


def _needed(name: str) -> bytes:
    data = _read(name)
    if data is None:
        pytest.skip(f"{FOLDER} has no {name}", allow_module_level=True)
    return data


def _read(name: str) -> bytes | None:
    if (FOLDER / name).is_file():
        return (FOLDER / name).read_bytes()
    packed = FOLDER / f"{name}.gz"
    return gzip.decompress(packed.read_bytes()) if packed.is_file() else None
