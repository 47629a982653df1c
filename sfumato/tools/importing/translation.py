"""From the settings of another trainer to options: the one engine for all tables."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sfumato.config.scripts.script import Script
from sfumato.config.secrets import ENVIRONMENT
from sfumato.errors import UserError
from sfumato.models.interface.catalogue import facts_of
from sfumato.tools.importing.program import Goal, Program, Reading, Settings, Values


@dataclass
class ImportedRun:
    """What a run is here.

    Attributes:
        options: by name.
        datasets: keys of each data set with one folder.
        prompts: lines for previews.
        left: settings that have no counterpart, with their values.
    """

    program: str
    goal: Goal
    options: dict[str, Any] = field(default_factory=dict)
    datasets: list[Values] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    left: dict[str, Any] = field(default_factory=dict)


def translate(program: Program, content: Mapping[str, Any]) -> ImportedRun:
    """Return what the content of another trainer's file is here.

    Raises:
        UserError: it trains what is not trained here.
    """
    settings = {
        name: value
        for name, value in flatten(content)
        if name not in ENVIRONMENT and (value != 0 or not program.zero_is_nothing)
    }
    goal = program.goal(settings)
    options = _row(goal).options().keys()
    run = ImportedRun(program.name, goal)
    shared = options if program.shares_names else ()
    run.options, run.left = _read(settings, program.settings, options, program.silent, shared)
    run.options |= {name: value for name, value in program.consequences(settings).items() if name in options}
    for table in program.datasets(settings):
        keys, left = _read(dict(flatten(table)), program.dataset_settings, (), program.silent, ())
        run.left |= {f"data set {len(run.datasets) + 1}: {name}": value for name, value in left.items()}
        run.datasets += _by_resolution(keys)
    run.prompts = list(program.prompts(settings))
    return run


def flatten(content: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting with its path; what asks for nothing is left out, and lists stay whole."""
    for name, value in content.items():
        path = f"{before}{name}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{path}.")
        elif value is not None and value is not False and value not in ("", []):
            yield path, value


def _read(
    settings: Settings,
    table: Mapping[str, Reading],
    known: Collection[str],
    silent: tuple[str, ...],
    shared: Collection[str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options that settings stand for, and the settings that have no counterpart.

    Args:
        known: options that there are; empty where all are.
        shared: options that settings of the same name stand for.
    """
    values: dict[str, Any] = {}
    left: dict[str, Any] = {}
    for path, value in settings.items():
        found = _value(path, value, table, shared)
        if found is not None and (not known or found.keys() <= set(known)):
            values |= found
        elif not path.startswith(silent):
            left[path] = value
    return values, left


def _value(path: str, value: Any, table: Mapping[str, Reading], shared: Collection[str]) -> Values | None:
    if path in table:
        try:
            return table[path](value)
        except (TypeError, ValueError):
            return None
    return {path: value} if path in shared else None


def _by_resolution(keys: Values) -> list[Values]:
    """Return a data set once for each of its resolutions, with buckets from half to twice of it.

    The other trainers limit no side of a bucket; here limits hold where none are given.
    """
    sides = keys.get("resolution")
    if sides is None:
        return [keys]
    return [
        {**keys, "resolution": side, "min_bucket_reso": side // 2, "max_bucket_reso": side * 2}
        for side in (sides if isinstance(sides, list) else [sides])
    ]


def _row(goal: Goal) -> Script:
    rows = [row for row in facts_of(goal.family).scripts if row.command == "train"]
    found = next((row for row in rows if row.method == goal.method), None)
    if found is None:
        known = ", ".join(row.method for row in rows)
        raise UserError(
            f"the file trains {goal.family} {goal.method}, which is not trained here; known: {known}"
        )
    return found
