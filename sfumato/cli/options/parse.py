"""From a command line to a Run: flags over the TOML file over the defaults, then what must not be ignored."""

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from sfumato.cli.options.flags import did_you_mean, make_parser, parse_flags
from sfumato.cli.options.tolerance import TRAINS_ALIKE
from sfumato.cli.options.toml_file import FileOptions, as_options, read_options, toml_path
from sfumato.cli.scripts import for_chosen_family
from sfumato.config.public import public_values, to_toml
from sfumato.config.rules.asked import Asked
from sfumato.config.rules.evaluation import check_supported, idle_lines, idle_options
from sfumato.config.rules.strictness import refuse
from sfumato.config.rules.tables import rules_for
from sfumato.config.run.run import Run
from sfumato.config.scripts.option import Option
from sfumato.config.scripts.script import Script
from sfumato.config.secrets import ENVIRONMENT
from sfumato.errors import UserError


@dataclass(frozen=True)
class Parsed:
    """A run as it was asked for, and what its user should be told about it.

    Attributes:
        script: its row, as it is for the family that the run names.
        output_config: where the options are to be written to, if that is all that was asked for.
    """

    run: Run
    script: Script
    warnings: tuple[str, ...] = ()
    output_config: Path | None = None


def parse(
    script: Script,
    argv: Sequence[str],
    *,
    prog: str,
    as_command: bool = False,
    table: Mapping[str, Any] | None = None,
) -> Parsed:
    """Read the options of one script.

    Args:
        as_command: read them as the sub-command of `sfumato`, which is strict and has defaults of its own.
        table: options of a program, which are read in the place of a configuration file.

    Raises:
        UserError: what is wrong with the command line or the file, in one line.
    """
    options = script.options(as_command=as_command)
    given = parse_flags(make_parser(options.values(), prog, script.summary), argv)
    _check_required(options, given)
    warnings = [_secret_warning(name) for name in ENVIRONMENT if given.get(name)]
    if given.get("output_config"):
        return Parsed(_run(script, options, given), script, output_config=_config_path(given))
    read = _read_file(options, given) if table is None else as_options(table, options, prog)
    file = read.without(given)
    script = for_chosen_family(script, _run(script, options, file.values | given))
    run = _run(script, options, file.values | given, from_file=file.values)
    rules, asked = rules_for(script), Asked.of_options(options, run, file.unread)
    idle = idle_options(rules, asked)
    never_used = {name for names in idle.values() for name in names}
    complaints = [
        *_stray_complaints(file, options),
        *idle_lines(idle),
        *_unread_complaints(file.unread, never_used),
    ]
    refuse(run, complaints)
    check_supported(rules, replace(asked, unread=frozenset()), never_used)
    return Parsed(run, script, (*warnings, *file.notes.values(), *complaints))


def _check_required(options: Mapping[str, Option], given: Mapping[str, Any]) -> None:
    missing = [
        option.name
        for option in options.values()
        if option.is_required and given.get(option.dest) in (None, "", ())
    ]
    if missing:
        raise UserError(f"{', '.join(missing)} must be given; --help says what for")


def _config_path(given: Mapping[str, Any]) -> Path:
    if not given.get("config_file"):
        raise UserError("--output_config needs --config_file: the file to write")
    return toml_path(given["config_file"])


def _read_file(options: Mapping[str, Option], given: Mapping[str, Any]) -> FileOptions:
    config_file = given.get("config_file")
    return read_options(toml_path(config_file), options) if config_file else FileOptions({})


def _run(
    script: Script, options: Mapping[str, Option], values: Mapping[str, Any], from_file: Iterable[str] = ()
) -> Run:
    """Build the sections; each checks its own ranges."""
    sections = []
    for section in script.sections:
        names = [field.name for field in fields(section) if field.name in options]
        sections.append(section(**{name: values.get(name, options[name].default) for name in names}))
    return Run(
        *(script.name, script.family, sections, script.trainable, frozenset(from_file)),
        *(script.files, script.conditioning_role),
    )


def _secret_warning(name: str) -> str:
    return f"--{name} on the command line can be seen and recorded by others; set {ENVIRONMENT[name]} instead"


def _stray_complaints(file: FileOptions, options: Mapping[str, Option]) -> list[str]:
    if not file.stray:
        return []
    names = ", ".join(name + did_you_mean(name, options) for name in file.stray)
    return [f"{file.source}: no such option, ignored: {names}"]


def _unread_complaints(unread: Mapping[str, str], idle: Collection[str]) -> list[str]:
    """Say which values of a file are left out as nobody can read them; raise for one that would matter."""
    problems = {name: problem for name, problem in unread.items() if name not in idle}
    for name, problem in problems.items():
        if name not in TRAINS_ALIKE:
            raise UserError(problem)
    return [f"{problem}; it is left out: {TRAINS_ALIKE[name]}" for name, problem in problems.items()]


def write_config(path: Path, run: Run) -> int:
    """Write the run's public options to a new TOML file; return 1, as sd-scripts does, if there is one."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(to_toml(public_values(run)))
    except FileExistsError:
        print(f"error: {path} exists; --output_config writes new files only", file=sys.stderr)  # noqa: T201
        return 1
    except OSError as error:
        raise UserError(f"--config_file {path} cannot be written: {error.strerror}") from None
    return 0
