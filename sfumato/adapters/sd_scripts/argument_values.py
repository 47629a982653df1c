"""`--network_args "key=value" ...`: split, checked against what an adapter knows, and converted."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from sfumato.config.checks import LARGEST
from sfumato.config.run.model.network import MOST_RANKS
from sfumato.errors import UserError

Value = TypeVar("Value")

_LAST_INDEX = 999
"""Beyond the blocks of any model: more would only fill memory."""


def split(arguments: Iterable[str]) -> dict[str, str]:
    """Return `key=value` texts as a dictionary; one without a value, as front-ends send it, is not given.

    Raises:
        UserError: a text has no `=`.
    """
    pairs = {}
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator:
            raise UserError(f"--network_args {argument}: write it as key=value")
        if value.strip():
            pairs[key.strip()] = value.strip()
    return pairs


def require_known(arguments: Mapping[str, str], known: Iterable[str]) -> None:
    """Raise UserError for an argument that is not known."""
    known = set(known)
    for key in arguments:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
            raise UserError(f"--network_args {key} is unknown; {hint}")


def read(
    arguments: Mapping[str, str], key: str, convert: Callable[[str], Value], expected: str
) -> Value | None:
    """Return an argument's value, or None where it is not given.

    Raises:
        UserError: `convert` refuses the text with ValueError.
    """
    text = arguments.get(key)
    if text is None or text == "None":
        return None
    try:
        return convert(text)
    except ValueError:
        raise UserError(f"--network_args {key}={text}: give {expected}") from None


def to_bool(text: str) -> bool:
    """Return the truth of `True`, `false`, `1` ..."""
    lowered = text.lower()
    if lowered not in ("true", "false", "1", "0"):
        raise ValueError(text)
    return lowered in ("true", "1")


def to_rank(text: str) -> int:
    """Return a rank: 0 (not adapted) to `MOST_RANKS`."""
    value = _not_below(0, int(text))
    if value > MOST_RANKS:
        raise ValueError(text)
    return value


def to_number(text: str) -> float:
    """Return a number that float32 holds."""
    value = float(text)
    if not abs(value) <= LARGEST:
        raise ValueError(text)
    return value


def to_ratio(text: str) -> float:
    """Return a number that is not negative, and that float32 holds."""
    return _not_below(0.0, to_number(text))


def to_probability(text: str) -> float:
    """Return a number in [0, 1)."""
    value = to_ratio(text)
    if value >= 1:
        raise ValueError(text)
    return value


def to_ranks(text: str) -> list[int]:
    """Return the ranks of `[4,2,2]` or `4,2,2`."""
    return [to_rank(item) for item in text.strip().strip("[]").split(",")]


def to_numbers(text: str) -> list[float]:
    """Return the numbers of `[1,0.5,2]` or `1,,2`; an empty place is 0. None of them is negative."""
    return [to_ratio(item) if item.strip() else 0.0 for item in text.strip().strip("[]").split(",")]


def to_count(text: str) -> int:
    """Return a number of ranks of at least 1."""
    return _not_below(1, to_rank(text))


def to_patterns(convert: Callable[[str], Value], text: str) -> tuple[tuple[re.Pattern[str], Value], ...]:
    """Return the pairs of `img_attn=8,single.*mod=4`: a regular expression, and what it stands for."""
    pairs = (item.partition("=") for item in text.split(",") if item.strip())
    try:
        return tuple((re.compile(pattern.strip()), convert(value)) for pattern, _, value in pairs)
    except re.error as error:
        raise ValueError(text) from error


def to_factor(text: str) -> int:
    """Return a number of parts: 1 or more, or -1 for as many as there can be."""
    return -1 if text.strip() == "-1" else to_count(text)


def to_indices(text: str) -> frozenset[int] | None:
    """Return the numbers that `0-3,7` selects; None for `all`, which selects every number."""
    if text == "all":
        return None
    if text in ("", "none"):
        return frozenset()
    return frozenset(index for item in text.split(",") for index in _range(item.strip()))


def _range(text: str) -> range:
    first, separator, last = text.partition("-")
    start = to_rank(first)
    stop = to_rank(last) if separator else start
    if not start <= stop <= _LAST_INDEX:
        raise ValueError(text)
    return range(start, stop + 1)


def _not_below(least: Value, value: Value) -> Value:
    if value < least:  # type: ignore[operator]
        raise ValueError(str(value))
    return value
