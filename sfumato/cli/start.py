"""What every run does between its command line and its work."""

import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sfumato.cli.commands import WORK
from sfumato.cli.options.parse import Parsed, parse, write_config
from sfumato.cli.requirements import check_requirements
from sfumato.config.public import public_values, to_toml
from sfumato.config.rules.evaluation import check_conflicts, imply
from sfumato.config.rules.tables import rules_for
from sfumato.config.run.console import ConsoleConfig
from sfumato.config.run.run import Run
from sfumato.config.scripts.script import Script
from sfumato.errors import UserError

logger = logging.getLogger(__name__)


def start(
    script: Script,
    argv: Sequence[str],
    *,
    prog: str,
    as_command: bool = False,
    work: Callable[[Run], int] | None = None,
) -> int:
    """Parse the options of one script, say what will be done, and do it; return the exit status.

    Args:
        work: what to do instead of what the script's command is.
    """
    parsed = parse(script, argv, prog=prog, as_command=as_command)
    if parsed.output_config:
        return write_config(parsed.output_config, parsed.run)
    return carry_out(parsed, work or WORK[script.command])


def carry_out(parsed: Parsed, work: Callable[[Run], int]) -> int:
    """Check what was parsed, say what will be done, and do it; return the exit status."""
    _refuse_pipes(parsed.run)
    check_conflicts(parsed.run, rules_for(parsed.script))
    check_requirements()
    with _named_files():
        return work(_announce(parsed))


def _refuse_pipes(run: Run) -> None:
    """Raise UserError for an option that names a pipe or socket: whoever reads it may wait for ever."""
    for name, value in run.values().items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str | Path) and name != _MAY_BE_PIPE and _is_pipe(text):
                raise UserError(f"--{name} is {text}, which is a pipe; name a file")


_MAY_BE_PIPE = "console_log_file"
"""It is only written to, and opened without waiting."""


def _is_pipe(path: str | Path) -> bool:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # it is no path, or there is nothing
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


@contextmanager
def _named_files() -> Iterator[None]:
    """Say in one line what keeps the program from a file: a name that is too long, a link in circles."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        logger.debug("the work ended", exc_info=True)
        raise UserError(f"{error.filename}: {error.strerror}; give another file or folder") from error


def _announce(parsed: Parsed) -> Run:
    """Set up logging, then log once what the user should know; return the run with what it implies."""
    from sfumato.log import set_up

    console = parsed.run.get(ConsoleConfig, ConsoleConfig())
    try:
        set_up(console.console_log_level, console.console_log_file)
    except OSError as error:
        where = f"--console_log_file {console.console_log_file}"
        raise UserError(f"{where} cannot be written: {error.strerror}; choose another file") from error
    run = completed(parsed)
    settings = to_toml(public_values(run)).rstrip() or "nothing"
    logger.info("%s, what differs from its defaults:\n%s", run.script, settings)
    return run


def completed(parsed: Parsed) -> Run:
    """Return a run with what its options imply; log that, and what the user should know of them."""
    for warning in parsed.warnings:
        logger.warning(warning)
    run, implied = imply(parsed.run, rules_for(parsed.script))
    for message in implied:
        logger.info(message)
    return run
