"""Sections of the configuration as command-line options, with the exact manners of sd-scripts' parsers."""

import argparse
import math
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from sfumato.config.checks import LARGEST
from sfumato.config.scripts.option import Kind, Option
from sfumato.errors import UserError


def make_parser(options: Iterable[Option], prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser whose result holds only what was given, so that a file can come under it."""
    parser = _Parser(prog=prog, description=description, argument_default=argparse.SUPPRESS)
    groups: dict[type, Any] = {}
    for option in options:
        if option.section not in groups:
            groups[option.section] = parser.add_argument_group((option.section.__doc__ or "").strip("."))
        groups[option.section].add_argument(*option.flags, **_argument(option))
    parser.options = {option.dest: option for option in options}
    return parser


def parse_flags(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """Return what the command line says, by option name.

    Raises:
        UserError: an unknown option or a value that cannot be read, in one line.
    """
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(_unknown_message(unknown, list(parser._option_string_actions)))
    return {name: _plain(value) for name, value in vars(given).items()}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean x?)` for the closest known name, or nothing where none is close."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f" (did you mean {close[0]}?)" if close else ""


def read_text(kind: Kind, text: str) -> Any:
    """Read one value of that kind from text.

    Raises:
        ValueError: the text does not say such a value; the message says what it should say.
    """
    if "\0" in text:  # which the command line cannot hold, but a file can
        raise ValueError(f"{text!r} is not {WANTED[kind]}")
    try:
        return _CONVERTERS[kind](text)
    except _TooLargeError as error:
        raise ValueError(f"{text!r} is not {WANTED[kind]} of at most {error}") from None
    except ValueError:
        raise ValueError(f"{text!r} is not {WANTED[kind]}{_point_hint(kind, text)}") from None


def _point_hint(kind: Kind, text: str) -> str:
    """Return what to write for a number with a comma in the place of its point."""
    is_number = kind in ("float", "int_or_float") and re.fullmatch(r"[+-]?\d*,\d+(e[+-]?\d+)?%?", text, re.I)
    return f"; write {text.replace(',', '.')}" if is_number else ""


class _TooLargeError(ValueError):
    """A number is larger than what computes with it can hold; the message is the largest."""


WANTED: dict[Kind, str] = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "Path": "a path",
    "int_or_float": "a number of steps (100), a share of the run (0.1) or a percentage (10%)",
}


def _plain(value: Any) -> Any:
    return tuple(item for item in value if item is not None) if isinstance(value, list) else value


def _argument(option: Option) -> dict[str, Any]:
    """Return the keywords of `add_argument`; a required option is looked for after typos are."""
    is_flag = option.flags[0].startswith("-")
    named = {"dest": option.dest} if is_flag else {}
    if option.kind == "bool":
        return named | {"action": "store_true"}
    return named | {
        "type": partial(_read_argument, option),
        "choices": option.accepted,
        "nargs": option.count if option.is_list or option.count == "?" else None,
        "metavar": None if option.choices or not is_flag else _METAVARS[option.kind],
    }


def _read_argument(option: Option, text: str) -> Any:
    if text is argparse.SUPPRESS:  # an optional positional that was not given goes through here
        return text
    if text == "" and option.default is None:  # a script's variable that holds nothing
        return None
    try:
        return read_text(option.kind, text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


_METAVARS: dict[Kind, str] = {
    "str": "TEXT", "int": "N", "float": "X", "bool": "", "Path": "FILE", "int_or_float": "N|X|N%",
}  # fmt: skip


_LARGEST_COUNT = 2**63 - 1
"""Of the whole numbers that tensors count in."""


def _number(text: str) -> float:
    """Read a number; `nan` is none, and would pass every check of a range."""
    value = float(text)
    if math.isnan(value):
        raise ValueError(text)
    if abs(value) > LARGEST:
        raise _TooLargeError(LARGEST)
    return value


def _whole_number(text: str) -> int:
    value = int(text)
    if abs(value) > _LARGEST_COUNT:
        raise _TooLargeError(_LARGEST_COUNT)
    return value


def _int_or_float(text: str) -> int | float:
    if text.endswith("%"):
        return _number(text[:-1]) / 100
    value = _number(text)
    return _whole_number(text) if value >= 1 else value or 0


_CONVERTERS: dict[Kind, Callable[[str], Any]] = {
    "str": str, "int": _whole_number, "float": _number, "Path": Path, "int_or_float": _int_or_float,
}  # fmt: skip


def _unknown_message(unknown: Sequence[str], flags: Iterable[str]) -> str:
    # Values are not repeated: behind a mistyped name may stand a secret.
    names = [text.partition("=")[0] for text in unknown if text.startswith("-")]
    if not names:
        return f"unexpected argument {unknown[0]!r}; text with spaces needs quotes, options begin with --"
    return "unknown option " + ", ".join(name + did_you_mean(name, flags) for name in names)


class _Parser(argparse.ArgumentParser):
    """A parser that raises instead of exiting and reads its help texts only when they are wanted."""

    options: dict[str, Option]

    def __init__(self, **keywords: Any) -> None:
        super().__init__(formatter_class=_HelpFormatter, **keywords)
        # Python's own pattern takes -1e-7 for an option.
        self._negative_number_matcher = re.compile(r"^-\.?\d")

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if value is not None:  # an empty text is no choice, but no mistake either
            super()._check_value(action, value)

    def format_usage(self) -> str:
        return f"usage: {self.prog} [options]\n"

    def format_help(self) -> str:
        from sfumato.cli.options.help_texts import field_docs

        for action in self._actions:
            if option := self.options.get(action.dest):
                action.help = _help_text(option, field_docs(option.section).get(option.dest, ""))
        self.usage = "%(prog)s [options]"
        return super().format_help()


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=8, width=100)


def _help_text(option: Option, text: str) -> str:
    default = "" if option.default in (None, "", (), False) else f" [{option.default}]"
    return (text + (" (required)" if option.is_required else default)).replace("%", "%%")
