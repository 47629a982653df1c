"""What `--strict` does: it turns warnings into errors."""

import logging
from collections.abc import Sequence

from sfumato.config.run.file import FileConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError

logger = logging.getLogger(__name__)


def is_strict(run: Run) -> bool:
    """Tell whether what otherwise only warns is to stop the run."""
    return run.get(FileConfig, FileConfig()).strict


def refuse(run: Run, lines: Sequence[str]) -> None:
    """Raise UserError with all the lines, if there are any and the run is strict."""
    if lines and is_strict(run):
        raise UserError("; ".join(lines))


def complain(run: Run, lines: Sequence[str]) -> None:
    """Warn of each line, or raise UserError with all of them where the run is strict."""
    refuse(run, lines)
    for line in lines:
        logger.warning(line)
