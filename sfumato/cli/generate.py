"""Make one image from the command line, prompts that are typed in, or a data set's regularisation images."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.config.run.generation import GenerationConfig
from sfumato.config.run.image_series import ImageSeriesConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError

if TYPE_CHECKING:
    from sfumato.sampling.prompts.prompt_options import PromptOptions
    from sfumato.sampling.session import SamplingSession

logger = logging.getLogger(__name__)


def main(run: Run, part_dtypes: Mapping[str, str] | None = None) -> None:
    """Make what the run asks for.

    Args:
        part_dtypes: the options that set the dtype of one part, by the part; see `Script`.

    Raises:
        UserError: a file, folder or option will not do.
    """
    from sfumato.sampling.prompts.prompt_options import PromptOptions
    from sfumato.sampling.session import (
        SamplingSession,  # torch starts here; --help and typos never pay for it
    )

    session = SamplingSession(run, part_dtypes=part_dtypes)
    settings = run[GenerationConfig]
    if settings.for_regularisation:
        from sfumato.sampling.regularisation import make_missing

        make_missing(session, run)
    elif settings.interactive:
        _converse(session)
    else:
        session.make(_lines_of(run) or [PromptOptions(settings.prompt)])


def _lines_of(run: Run) -> list[PromptOptions]:
    """Return the prompts of `from_file`, if it is given.

    Raises:
        UserError: the file cannot be read, or holds none.
    """
    from sfumato.sampling.prompts.files import read_prompts

    file = run.get(ImageSeriesConfig, ImageSeriesConfig()).from_file
    if file is None:
        return []
    lines = read_prompts(Path(file))
    if not lines:
        raise UserError(f"--from_file {file} holds no prompt; write one a line")
    return lines


def _converse(session: SamplingSession) -> None:
    """Make an image for each line; a line that cannot be made is answered, and the next one asked for."""
    logger.info(
        "type a prompt, with options behind it if you like: --w width --h height --s steps --d seed "
        "--g guidance --c cfg scale --n negative prompt --m adapter strengths --img image --mask mask "
        "--t strength; "
        "an empty line ends"
    )
    for line in _lines():
        _answer(session, line)


def _answer(session: SamplingSession, line: str) -> None:
    from sfumato.sampling.prompts.prompt_options import parse_line

    try:
        session.make([parse_line(line)])
    except UserError as error:
        logger.error("%s", error)


def _lines() -> Iterator[str]:
    """Yield what is typed until an empty line or the end of the input."""
    while True:
        try:
            line = input("prompt> ").strip()
        except (EOFError, OSError):  # an OSError is the terminal's end
            return
        if not line:
            return
        yield line
