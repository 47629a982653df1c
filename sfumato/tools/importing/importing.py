"""`sfumato import`: take over a run of another trainer."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.config.tools.importing import ImportingConfig
from sfumato.errors import UserError
from sfumato.tools.importing.program import Program
from sfumato.tools.importing.programs import ai_toolkit, kohya_ss, onetrainer, simpletuner
from sfumato.tools.importing.reading import beside, read, settings
from sfumato.tools.importing.run_files import files_of, left_lines
from sfumato.tools.importing.translation import flatten, translate

PROGRAMS = (ai_toolkit.PROGRAM, simpletuner.PROGRAM, onetrainer.PROGRAM, kohya_ss.PROGRAM)
"""All trainers, in the order in which their marks are looked for."""

_LISTS = {"concept_file_name": True, "data_backend_config": True, "sample_definition_file_name": False}
"""Settings that name a file, whose content takes their place, and whether it must be there."""


def import_run(config: ImportingConfig) -> str:
    """Write a run's files; return what was not taken over, and the command that trains.

    Raises:
        UserError: the file is of no known trainer, or trains what is not trained here.
    """
    file = Path(config.file)
    content = _with_lists(_plain(settings(file)), file)
    program = _program(file, content)
    run = translate(program, content)
    output = Path(config.output or file.with_name(f"{file.stem}.sfumato.toml")).absolute()
    files_of(run, file, output).write()
    goal = f"{run.goal.family} {run.goal.method}"
    return "\n".join(
        [*left_lines(run), f"run: sfumato train {goal} --config_file {shlex.quote(str(output))}"]
    )


def _plain(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings by the names that tables have, whatever stands around them."""
    named = simpletuner.with_names_of_options(content)
    return ai_toolkit.only_process(named)


def _with_lists(content: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    named = {name: beside(str(content[name]), file) for name in _LISTS if content.get(name)}
    found = {name: read(path) for name, path in named.items() if _LISTS[name] or path.exists()}
    return {**content, **found}


def _program(file: Path, content: Mapping[str, Any]) -> Program:
    paths = dict(flatten(content)).keys() | content.keys()
    found = next((program for program in PROGRAMS if paths & set(program.marks)), None)
    if found is None:
        names = ", ".join(program.name for program in PROGRAMS)
        raise UserError(f"{file} is of no trainer that is known; known: {names}")
    return found
