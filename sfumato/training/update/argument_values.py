"""Arguments of optimizers and schedules as they are written in options: `key=value`, values as in Python."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from sfumato.errors import UserError


def parse_arguments(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """Read `key=value` texts; values are Python literals, so strings need quotes. The last of a key counts.

    Raises:
        UserError: a text has no `=`, or its value is no literal.
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = (text.strip() for text in pair.partition("="))
        if not equals or not key:
            raise UserError(f"{option} holds {pair!r}; write each argument as key=value")
        if _is_one_with_comma(value):
            raise UserError(f"{option} holds {pair!r}; leave out the comma: blanks stand between arguments")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError):
            raise UserError(f"{option} holds {pair!r}; {_why_unread(key, value)}") from None
    return arguments


def _is_one_with_comma(value: str) -> bool:
    """Whether a comma behind one value would make a list of it."""
    return value.endswith(",") and not set(value[:-1]) & set(",([{'\"")


def _why_unread(key: str, value: str) -> str:
    if any(value.count(start) > value.count(end) for start, end in ("()", "[]", "{}")):
        return f"its value was split at a blank: write it without, as {key}=(0.9,0.99)"
    if re.fullmatch(r"[+-]?\d+,\d+", value):
        return f"a number has a point: {key}={value.replace(',', '.')}"
    return f"its value is no literal (text needs quotes: {key}='{value}')"


def require_accepted(
    kind: Callable[..., Any], arguments: Collection[str], option: str, own: Collection[str]
) -> None:
    """Raise UserError for an argument that a class does not know.

    Args:
        kind: the class; one that takes any argument, or does not tell, is left to say so itself.
        own: arguments that it gets from us.
    """
    try:
        parameters = inspect.signature(kind).parameters.values()
    except (TypeError, ValueError):
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters if parameter.name not in own]
    for key in arguments:
        if key not in known:
            raise UserError(
                f"{option} holds {key}, which {kind.__name__} does not know; it knows {', '.join(known)}"
            )
