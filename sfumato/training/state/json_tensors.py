"""Nested Python values with tensors inside, as a JSON text and named tensors: no pickle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

TENSOR, TUPLE, PAIRS = "tensor", "tuple", "pairs"


def take_apart(value: Any, name: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Return a JSON value and the tensors it mentions, by name.

    Args:
        value: dicts (with keys of any JSON kind), lists, tuples, numbers, strings, None and tensors, nested.

    Raises:
        ValueError: there is something else inside.
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value
            return {TENSOR: name, "device": value.device.type, "shape": list(value.shape)}
        if isinstance(value, dict):
            return {PAIRS: [[key, plain(item, f"{name}/{key}")] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            items = [plain(item, f"{name}/{index}") for index, item in enumerate(value)]
            return {TUPLE: items} if isinstance(value, tuple) else items
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise ValueError(f"{name} holds a {type(value).__name__}, which a state cannot keep")

    return plain(value, name), tensors


def mentioned(plain: Any) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Yield name and shape of each tensor that a JSON value mentions, with None if it tells no shape."""
    if isinstance(plain, dict) and TENSOR in plain:
        yield plain[TENSOR], tuple(plain["shape"]) if "shape" in plain else None
    elif isinstance(plain, dict | list):
        for item in plain.values() if isinstance(plain, dict) else plain:
            yield from mentioned(item)


def put_together(plain: Any, tensor: Callable[[str, str], Tensor]) -> Any:
    """Return what `take_apart` was given.

    Args:
        tensor: returns the tensor of a name; its second argument is the kind of device it was on.
    """
    if isinstance(plain, list):
        return [put_together(item, tensor) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if TENSOR in plain:
        return tensor(plain[TENSOR], plain["device"])
    if TUPLE in plain:
        return tuple(put_together(item, tensor) for item in plain[TUPLE])
    return {key: put_together(item, tensor) for key, item in plain[PAIRS]}
