"""From a command line to a Run: flags over the TOML file over the defaults, then what must not be ignored."""

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sfumato.cli.options.flags import did_you_mean, make_parser, parse_flags
from sfumato.cli.options.tolerance import TRAINS_ALIKE
from sfumato.cli.options.toml_file import FileOptions, read_options, toml_path
from sfumato.cli.scripts import for_chosen_family
from sfumato.config.public import public_values, to_toml
from sfumato.config.rules.effects import IDLE_WITHOUT, WHY_UNSUPPORTED
from sfumato.config.run.file import FileConfig
from sfumato.config.run.run import Run
from sfumato.config.scripts.option import Option
from sfumato.config.scripts.script import Script
from sfumato.config.secrets import ENVIRONMENT
from sfumato.errors import UserError


@dataclass(frozen=True)
class Parsed:
    """A run as it was asked for, and what its user should be told about it.

    Attributes:
        output_config: where the options are to be written to, if that is all that was asked for.
    """

    run: Run
    warnings: tuple[str, ...] = ()
    output_config: Path | None = None


def parse(script: Script, argv: Sequence[str], *, prog: str, as_command: bool = False) -> Parsed:
    """Read the options of one script.

    Args:
        as_command: read them as the sub-command of `sfumato`, which is strict and has defaults of its own.

    Raises:
        UserError: what is wrong with the command line or the file, in one line.
    """
    options = script.options(as_command=as_command)
    given = parse_flags(make_parser(options.values(), prog, script.summary), argv)
    _check_required(options, given)
    warnings = [_secret_warning(name) for name in ENVIRONMENT if given.get(name)]
    if given.get("output_config"):
        return Parsed(_run(script, options, given), output_config=_config_path(given))
    file = _read_file(options, given).without(given)
    script = for_chosen_family(script, _run(script, options, file.values | given))
    run = _run(script, options, file.values | given, from_file=file.values)
    complaints = [
        *_stray_complaints(file.stray, options, given),
        *_effect_complaints(script, options, run, file.unread),
        *_unread_complaints(script, options, run, file.unread),
    ]
    if complaints and run[FileConfig].strict:
        raise UserError("; ".join(complaints))
    _check_supported(script, options, run)
    return Parsed(run, (*warnings, *file.notes.values(), *complaints))


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
        script.conditioning_role,
    )


def _secret_warning(name: str) -> str:
    return f"--{name} on the command line can be seen and recorded by others; set {ENVIRONMENT[name]} instead"


def _stray_complaints(
    stray: Sequence[str], options: Mapping[str, Option], given: Mapping[str, Any]
) -> list[str]:
    if not stray:
        return []
    names = ", ".join(name + did_you_mean(name, options) for name in stray)
    return [f"{toml_path(given['config_file'])}: no such option, ignored: {names}"]


def _effect_complaints(
    script: Script, options: Mapping[str, Option], run: Run, unread: Collection[str]
) -> list[str]:
    """Say which options were given although they change nothing: never here, or not in this company."""
    values = _asked(options, run)
    used = [name for name in values if name in unread or _is_used(options[name], values[name])]
    never: dict[str, list[str]] = {}
    for name in used:
        if name in script.without_effect:
            never.setdefault(script.without_effect[name], []).append(f"--{name}")
    idle = [
        f"--{name} has no effect without {' or '.join(f'--{other}' for other in IDLE_WITHOUT[name])}"
        for name in used
        if name not in script.without_effect and _is_idle(name, options, values)
    ]
    return [
        f"{', '.join(names)} {'have' if len(names) > 1 else 'has'} no effect here: {reason}"
        for reason, names in never.items()
    ] + idle


def _unread_complaints(
    script: Script, options: Mapping[str, Option], run: Run, unread: Mapping[str, str]
) -> list[str]:
    """Say which values of a file are left out as nobody can read them; raise for one that would matter."""
    values = _asked(options, run)
    complaints = []
    for name, problem in unread.items():
        if name in script.without_effect or _is_idle(name, options, values):
            continue
        if name not in TRAINS_ALIKE:
            raise UserError(problem)
        complaints.append(f"{problem}; it is left out: {TRAINS_ALIKE[name]}")
    return complaints


def _check_supported(script: Script, options: Mapping[str, Option], run: Run) -> None:
    values = _asked(options, run)
    for name, value in values.items():
        if value in script.unsupported_values.get(name, ()):
            raise UserError(f"--{name} {value} is not supported yet")
        if (
            name in script.unsupported
            and _is_used(options[name], value)
            and not _is_idle(name, options, values)
        ):
            why = WHY_UNSUPPORTED.get(name)
            raise UserError(f"--{name} is not supported" + (f": {why}" if why else " yet"))


def _asked(options: Mapping[str, Option], run: Run) -> dict[str, Any]:
    """Return the values of the script's own options: sections may hold some that it does not have."""
    return {name: value for name, value in run.values().items() if name in options}


def _is_used(option: Option, value: Any) -> bool:
    """Tell whether a value asks for something: 0 and empty text do not where the default is 'not given'."""
    return value != option.default and not (option.default is None and not value)


def _is_idle(name: str, options: Mapping[str, Option], values: Mapping[str, Any]) -> bool:
    return name in IDLE_WITHOUT and not any(_is_asked(text, options, values) for text in IDLE_WITHOUT[name])


def _is_asked(text: str, options: Mapping[str, Option], values: Mapping[str, Any]) -> bool:
    """Tell whether an option, or `option value`, is what the run has."""
    name, _, value = text.partition(" ")
    return values[name] == value if value else _is_used(options[name], values[name])


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
