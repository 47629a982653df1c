"""The scripts' options as plain argparse actions, of which other programs build forms."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from sfumato.cli.options.flags import read_text
from sfumato.cli.options.help_texts import field_docs
from sfumato.cli.options.toml_file import read_table, toml_path
from sfumato.cli.scripts import script_named
from sfumato.config.scripts.option import Kind, Option

_TYPES: dict[Kind, Callable[[str], Any]] = {
    "str": str, "int": int, "float": float, "Path": str, "int_or_float": partial(read_text, "int_or_float"),
}  # fmt: skip


def parser_of(script: str) -> argparse.ArgumentParser:
    """Return a script's parser; every action has its default, help and, but for switches, type."""
    parser = argparse.ArgumentParser(description=script_named(script).summary)
    add_options(parser, script)
    return parser


def add_options(parser: argparse.ArgumentParser, script: str) -> None:
    """Add to a parser those options of a script that it lacks."""
    known = {action.dest for action in parser._actions}
    for option in script_named(script).options().values():
        if option.dest not in known:
            parser.add_argument(*option.flags, **_argument(option))


def read_config_from_file(args: argparse.Namespace, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options of `args.config_file` under those of this program's command line.

    Values of the file are as it has them; whoever trains with them checks them.

    Raises:
        UserError: the file cannot be read.
    """
    if not args.config_file:
        return args
    table = read_table(toml_path(args.config_file))
    return parser.parse_args(namespace=argparse.Namespace(**table))


def _argument(option: Option) -> dict[str, Any]:
    """Return the keywords of `add_argument`."""
    text = field_docs(option.section).get(option.dest, "").replace("%", "%%")
    is_flag = option.flags[0].startswith("-")
    named = {"dest": option.dest, "required": option.is_required} if is_flag else {}
    if option.kind == "bool":
        return {**named, "action": "store_true", "help": text}
    return {
        **named,
        "type": _TYPES[option.kind],
        "default": list(option.default) if isinstance(option.default, tuple) else option.default,
        "choices": option.choices,
        "nargs": option.count if option.is_list or option.count == "?" else None,
        "help": text,
    }
