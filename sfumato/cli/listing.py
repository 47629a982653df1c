"""`sfumato options SCRIPT`: the options of a script, for people and for front-ends that build forms."""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sfumato.cli.options.flags import make_parser, parse_flags
from sfumato.cli.options.help_texts import field_docs
from sfumato.cli.product import show
from sfumato.cli.scripts import script_named
from sfumato.config.rule import Rule
from sfumato.config.rules.evaluation import acts_with, as_json, idle_with
from sfumato.config.rules.tables import rules_for
from sfumato.config.scripts.option import Option
from sfumato.config.scripts.script import Script


def main(argv: Sequence[str]) -> int:
    """Print the options of the named script as a table, or as JSON with `--json`."""
    parser = make_parser((), "sfumato options", "List the options of a script of sd-scripts.")
    parser.add_argument("script", metavar="SCRIPT", help="name of the script, e.g. flux_train_network")
    parser.add_argument("--json", action="store_true", help="machine-readable, with types and choices")
    given = parse_flags(parser, argv)
    script = script_named(given["script"])
    show(json.dumps(describe(script), indent=1) if given.get("json") else _table(script))
    return 0


def describe(script: Script) -> list[dict[str, Any]]:
    """Return one dictionary for each option, read off the parser that the script uses."""
    options = script.options()
    parser = make_parser(options.values(), script.name, script.summary)
    actions = [action for action in parser._actions if action.dest in options]
    rules = rules_for(script)
    return [
        {**_row(action, options[action.dest], script), **_company(action.dest, rules)} for action in actions
    ]


def _row(action: argparse.Action, option: Option, script: Script) -> dict[str, Any]:
    default = option.default
    return {
        "flags": list(action.option_strings),
        "dest": action.dest,
        "type": option.kind,
        "default": list(default) if isinstance(default, tuple) else _plain(default),
        "choices": list(option.choices) if option.choices else None,
        "nargs": action.nargs if option.is_list else None,
        "action": "store_true" if option.kind == "bool" else "store",
        "required": option.is_required,
        "metavar": action.metavar,
        "supported": option.dest not in script.unsupported,
        "help": field_docs(option.section).get(option.dest, ""),
    }


def _company(name: str, rules: Iterable[Rule]) -> dict[str, Any]:
    """Return with which values of others an option acts, or has no effect, so that a form may hide it."""
    rules = tuple(rules)
    return {"acts_with": as_json(acts_with(rules, name)), "idle_with": as_json(idle_with(rules, name))}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _table(script: Script) -> str:
    rows = describe(script)
    width = max(len(row["dest"]) for row in rows)
    return "\n".join(f"{row['dest']:{width}}  {_type(row)}  {_state(row)}{row['help']}" for row in rows)


def _type(row: dict[str, Any]) -> str:
    return row["type"] + ("..." if row["nargs"] else "")


def _state(row: dict[str, Any]) -> str:
    return "" if row["supported"] else "(not supported yet) "
