"""Checks that every section of the configuration shares: one line, option, value, remedy."""

from typing import Any

from sfumato.errors import UserError

LARGEST = 3.4e38
"""Of the numbers that float32 holds, in which most is computed: what is above it would be infinite there."""
_MOST_DIGITS = 10
"""Of a number of pixels; Python refuses to read numbers of thousands of digits."""


def at_least(section: Any, minimum: float, *names: str) -> None:
    """Raise UserError if one of the named fields is set and lies below `minimum`."""
    for name in names:
        value = getattr(section, name)
        if value is not None and not value >= minimum:  # which nan is not
            raise UserError(f"--{name} is {value}; use {minimum} or more")


def above(section: Any, limit: float, *names: str) -> None:
    """Raise UserError if one of the named fields is set and does not lie above `limit`."""
    for name in names:
        value = getattr(section, name)
        if value is not None and not value > limit:
            raise UserError(f"--{name} is {value}; use a value above {limit}")


def between(section: Any, low: float, high: float, *names: str) -> None:
    """Raise UserError if one of the named fields is set and lies outside [low, high]."""
    for name in names:
        value = getattr(section, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name} is {value}; use a value from {low} to {high}")


def present(section: Any, remedy: str, *names: str) -> None:
    """Raise UserError if one of the named fields is empty, though nothing can be done without it."""
    for name in names:
        if not getattr(section, name):
            raise UserError(f"--{name} is missing; {remedy}")


def importable(section: Any, *names: str) -> None:
    """Raise UserError if one of the named fields is set and is nothing that Python could import."""
    for name in names:
        text = getattr(section, name)
        if text and not (all(text.split(".")) and text.isprintable() and not set(text) & set("/\\")):
            raise UserError(f"--{name} is {text!r}; write it as Python imports it: package.module.Name")


def sides(name: str, text: str) -> tuple[int, int]:
    """Return the (width, height) in pixels that an option's text gives; raise UserError if it gives none."""
    parts = text.split(",")
    if len(parts) > 2 or not all(is_side(part.strip()) for part in parts):
        raise UserError(f"--{name} is {text!r}; write pixels as 1024 or width,height as 1024,768")
    return int(parts[0]), int(parts[-1])


def is_side(text: str) -> bool:
    """Return whether a text is a number of pixels, above 0 and no longer than such numbers are."""
    return text.isdecimal() and len(text) <= _MOST_DIGITS and int(text) > 0
