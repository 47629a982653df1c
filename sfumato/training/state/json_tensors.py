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
    match plain:
        case {"tensor": str(name), "shape": list(sides)}:
            yield name, tuple(sides)
        case {"tensor": str(name)}:
            yield name, None
        case dict() | list():
            for item in plain.values() if isinstance(plain, dict) else plain:
                yield from mentioned(item)


def put_together(plain: Any, tensor: Callable[[str, str], Tensor]) -> Any:
    """Return what `take_apart` was given.

    Args:
        tensor: returns the tensor of a name; its second argument is the kind of device it was on.

    Raises:
        ValueError: nothing was taken apart into that.
    """
    match plain:
        case list():
            return [put_together(item, tensor) for item in plain]
        case {"tensor": str(name), "device": str(device)}:
            return tensor(name, device)
        case {"tuple": list(items)}:
            return tuple(put_together(item, tensor) for item in items)
        case {"pairs": list(pairs)} if all(map(_is_pair, pairs)):
            return {key: put_together(item, tensor) for key, item in pairs}
        case dict():
            raise ValueError(f"an object has {', '.join(map(str, plain))[:80] or 'nothing'}")
        case _:
            return plain


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and not isinstance(value[0], list | dict)
