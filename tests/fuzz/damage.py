"""Damaged and hostile inputs, made of a small sound one."""

from __future__ import annotations

import copy
import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

DEEP = "<nested deep>"
"""Stands in JSON texts for lists in lists, deeper than any stack."""
_LEVELS = 100_000

NUMBERS: list[Any] = [0, -1, 1, 2, 1.5, -0.0, 1e308, 1 << 31, 1 << 63, 1 << 64, -(1 << 70), 10**400]
NO_NUMBERS: list[Any] = [float("nan"), float("inf"), -float("inf")]
TEXTS: list[Any] = [
    "",
    "text",
    "\x00",
    "\ud800",
    "two\nlines",
    "../..",
    "/",
    "9" * 5000,
    "x" * 300,
    "ä€😀",
    "nan",
]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [1, 2, 3, 4, 5], ["a", 1], {"a": {"b": 1}}, DEEP]
_ONES = st.sampled_from(NUMBERS + NO_NUMBERS + TEXTS + OTHERS)
HOSTILE = _ONES.map(copy.deepcopy) | st.integers() | st.text(max_size=8)
"""Values of JSON where others are expected."""


@st.composite
def damaged_bytes(draw: DrawFn, *sound: bytes) -> bytes:
    """Return one of these with bytes cut off, left out, doubled, changed or put in."""
    data = bytearray(draw(st.sampled_from(sound)))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.integers(0, 12) | st.integers(0, len(data)))
        match draw(st.sampled_from(["cut", "leave out", "double", "flip", "put in"])):
            case "cut":
                del data[start:]
            case "leave out":
                del data[start : start + length]
            case "double":
                data[start:start] = data[start : start + length]
            case "flip":
                data[start : start + 1] = bytes([draw(st.integers(0, 255))])
            case _:
                data[start:start] = draw(st.binary(min_size=1, max_size=9))
    return bytes(data)


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
    """Yield where everything lies in a value of JSON, the value itself first."""
    yield above
    children = (
        value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    )
    for key, child in children:
        yield from paths(child, (*above, key))


@st.composite
def exchanged(draw: DrawFn, sound: Any) -> Any:
    """Return a value of JSON with some of its parts exchanged, left out, renamed or doubled."""
    value = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(paths(value))))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                value = draw(HOSTILE)
            continue
        *above, last = path
        holder = value
        for key in above:
            holder = holder[key]
        _change(draw, holder, last)
    return value


def _change(draw: DrawFn, holder: Any, key: Any) -> None:
    match draw(st.sampled_from(["exchange", "exchange", "exchange", "leave out", "another name", "wrap"])):
        case "leave out":
            del holder[key]
        case "another name" if isinstance(holder, dict):
            holder[draw(st.sampled_from([*TEXTS, *holder]))] = holder.pop(key)
        case "wrap":
            holder[key] = [holder[key]]
        case _:
            holder[key] = draw(HOSTILE)


def json_text(value: Any) -> bytes:
    """Return a value as JSON, half characters as escapes, and `DEEP` as what it stands for."""
    text = json.dumps(value, ensure_ascii=bool("\ud800" in repr(value) or "\\ud800" in repr(value)))
    return text.replace(f'"{DEEP}"', "[" * _LEVELS + "]" * _LEVELS).encode("utf-8", "replace")


def damaged_json(sound: Any) -> SearchStrategy[bytes]:
    """Return JSON with hostile values, or with damaged bytes."""
    return exchanged(sound).map(json_text) | damaged_bytes(json_text(sound))


@st.composite
def damaged_zip(
    draw: DrawFn, sound: Mapping[str, bytes], members: SearchStrategy[bytes] | None = None
) -> bytes:
    """Return a zip archive of which members are left out, doubled, damaged, packed or exchanged.

    Args:
        members: what else a member may hold.
    """
    named: list[tuple[str, bytes]] = list(sound.items())
    for _ in range(draw(st.integers(1, 2))):
        if not named:
            break
        index = draw(st.integers(0, len(named) - 1))
        name, data = named[index]
        match draw(st.sampled_from(["leave out", "double", "damage", "damage", "another name", "exchange"])):
            case "leave out":
                del named[index]
            case "double":
                named.append(named[index])
            case "damage":
                named[index] = (name, draw(damaged_bytes(data)))
            case "another name":
                named[index] = (draw(st.sampled_from(["../x", "", "a" * 300, *sound])), data)
            case _:
                named[index] = (name, draw(members if members is not None else st.binary(max_size=64)))
    packed = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    data = archive(named, packed)
    return draw(damaged_bytes(data)) if draw(st.integers(0, 3)) == 0 else data


def archive(named: Sequence[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip archive of these members, of which several may have one name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there already
        for name, data in named:
            file.writestr(zipfile.ZipInfo(name), data, compression)
    return buffer.getvalue()


def members(data: bytes) -> dict[str, bytes]:
    """Return the members of a zip archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


_VALUE = re.compile(r"\b\d+(?:\.\d+)?\b|\"[^\"\n]*\"|'[^'\n]*'|\btrue\b|\bfalse\b")


@st.composite
def exchanged_words(draw: DrawFn, sound: str, hostile: Sequence[str]) -> bytes:
    """Return a text in which values, numbers and quoted texts, are exchanged for others."""
    text = sound
    for _ in range(draw(st.integers(1, 3))):
        found = list(_VALUE.finditer(text))
        if not found:
            break
        place = draw(st.sampled_from(found))
        text = text[: place.start()] + draw(st.sampled_from(hostile)) + text[place.end() :]
    return text.encode("utf-8", "surrogatepass")


TOML_VALUES = [
    *("0", "-1", "1.5", "nan", "inf", "-inf", "1e400", "9223372036854775808", "9" * 5000, "true", "''"),
    *(
        "[]",
        "[1, 2, 3]",
        "[[1], ['a']]",
        "{}",
        "{a = {b = 1}}",
        "1979-05-27",
        "07:32:00",
        '"text"',
        "'../..'",
    ),
    *('"\\ud800"', '"two\\nlines"', '"\\u0000"', "[" * 5000 + "]" * 5000, "{a." + "a." * 3000 + "a = 1}"),
]


def damaged_toml(sound: str) -> SearchStrategy[bytes]:
    """Return TOML with hostile values, or with damaged bytes."""
    return exchanged_words(sound, TOML_VALUES) | damaged_bytes(sound.encode())
