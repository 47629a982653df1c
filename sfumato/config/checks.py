"""Range checks that every section of the configuration shares: one line, option, value, remedy."""

from typing import Any

from sfumato.errors import UserError


def at_least(section: Any, minimum: float, *names: str) -> None:
    """Raise UserError if one of the named fields is set and lies below `minimum`."""
    for name in names:
        value = getattr(section, name)
        if value is not None and value < minimum:
            raise UserError(f"--{name} is {value}; use {minimum} or more")


def above(section: Any, limit: float, *names: str) -> None:
    """Raise UserError if one of the named fields is set and does not lie above `limit`."""
    for name in names:
        value = getattr(section, name)
        if value is not None and value <= limit:
            raise UserError(f"--{name} is {value}; use a value above {limit}")


def between(section: Any, low: float, high: float, *names: str) -> None:
    """Raise UserError if one of the named fields is set and lies outside [low, high]."""
    for name in names:
        value = getattr(section, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name} is {value}; use a value from {low} to {high}")
