"""What a prompt line asks for in previews and in `sfumato generate`: `a cat --w 512 --d 1`."""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from sfumato.errors import UserError
from sfumato.sampling.prompts.lines import split_line
from sfumato.sampling.request import Request

logger = logging.getLogger(__name__)

MAX_STEPS = 1000
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class PromptOptions:
    """What one prompt line says; None where it says nothing.

    Attributes:
        scale: guidance of the kind that the model knows best, see `request`.
        strength: share of the steps that changes `image`, in [0, 1].
        multipliers: strengths of the adapters, in their order.
    """

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    seed: int | None = None
    scale: float | None = None
    guidance: float | None = None
    cfg_scale: float | None = None
    sampler: str | None = None
    image: str | None = None
    mask: str | None = None
    strength: float | None = None
    multipliers: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for text in (self.prompt, self.negative_prompt):
            # JSON can escape one half of an emoji alone, and bytes that are no text come as such halves, too.
            if text and _HALF_CHARACTER.search(text):
                raise UserError(f"prompt {text!r} holds half a character; write it anew")

    def request(self, defaults: Request, scale: Literal["guidance", "cfg_scale"] = "cfg_scale") -> Request:
        """Return `defaults` with what the line says.

        Args:
            defaults: answers whatever the line leaves open; its own prompt is not used.
            scale: what `--l` means for the model (`Family.sampling.scale`). Where the line also gives `--g`,
                the distilled guidance is taken care of and `--l` is the classifier-free guidance scale.
        """
        known = {field.name for field in fields(Request)}
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name in known}
        said = {name: value for name, value in own.items() if value is not None}
        if self.scale is not None:
            target = "cfg_scale" if self.guidance is not None else scale
            said.setdefault(target, self.scale)
        return replace(defaults, **said)


def parse_line(line: str) -> PromptOptions:
    """Read a prompt with options behind it.

    An unknown option is left out, and one with a single dash is text; either is a warning.

    Raises:
        UserError: an option's value is missing or no number.
    """
    prompt, pieces = split_line(line, _OPTIONS)
    said: dict[str, Any] = {}
    for name, value in pieces:
        field, read = _OPTIONS[name]
        said[field] = _value(read, f"--{name}", value.strip())
    return PromptOptions(prompt, **said)


def parse_table(table: Mapping[str, Any]) -> PromptOptions:
    """Read a prompt of a .toml or .json file; an unknown key is left out with a warning.

    Raises:
        UserError: a key's value is no number, or text that is none.
    """
    said: dict[str, Any] = {"prompt": ""}
    for key, value in table.items():
        if value is None:  # JSON's way to say nothing
            continue
        known = _KEYS.get(key)
        if known is None:
            logger.warning("key %s of a prompt is left out%s", key, _did_you_mean(key))
            continue
        field, read = known
        said[field] = _value(read, key, str(value))
    return PromptOptions(**said)


def _value(read: Callable[[str], Any], name: str, text: str) -> Any:
    try:
        return read(text)
    except ValueError:
        raise UserError(f"prompt option {name} is '{text}'; give {_WANTED[read]}") from None


def _steps(text: str) -> int:
    return min(max(int(text), 1), MAX_STEPS)


def _seed(text: str) -> int | None:
    seed = int(text)
    return None if seed == -1 else seed  # the usual way to ask for any


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_number(part) for part in text.split(","))


def _negative(text: str) -> str:
    return "" if text == "-" else text  # sd-scripts' way to take a negative prompt back


def _did_you_mean(key: str) -> str:
    close = difflib.get_close_matches(key, _KEYS, n=1)
    return f"; did you mean {close[0]}?" if close else ": it is not known"


_WANTED: dict[Callable[[str], Any], str] = {
    int: "a whole number",
    _seed: "a whole number",
    _steps: "a whole number",
    _number: "a number",
    _numbers: "numbers, separated by commas",
}

_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "w": ("width", int),
    "h": ("height", int),
    "d": ("seed", _seed),
    "s": ("steps", _steps),
    "l": ("scale", _number),
    "g": ("guidance", _number),
    "c": ("cfg_scale", _number),
    "n": ("negative_prompt", _negative),
    "ss": ("sampler", str),
    "img": ("image", str),
    "mask": ("mask", str),
    "t": ("strength", _number),
    "m": ("multipliers", _numbers),
}
"""Options of a prompt line: the field of `PromptOptions` and how its text is read."""

_KEYS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "prompt": ("prompt", str),
    "negative_prompt": ("negative_prompt", str),
    "width": ("width", int),
    "height": ("height", int),
    "seed": ("seed", _seed),
    "sample_steps": ("steps", _steps),
    "scale": ("scale", _number),
    "guidance_scale": ("guidance", _number),
    "cfg_scale": ("cfg_scale", _number),
    "sample_sampler": ("sampler", str),
    "img": ("image", str),
    "mask": ("mask", str),
    "strength": ("strength", _number),
}
"""Keys of a prompt in .toml and .json files, read like `_OPTIONS`."""
