"""Standard output where it is what a command is for: a report, a table, JSON."""

import sys

from sfumato.console import failure, printable_lines
from sfumato.errors import UserError


def show(text: str) -> None:
    """Print a text with any characters; those that a terminal does not have or obeys become numbers.

    Raises:
        UserError: the text did not get there; a reader who has seen enough (`| head`) is no reason.
    """
    encoding = sys.stdout.encoding or "utf-8"
    print(printable_lines(text).encode(encoding, "backslashreplace").decode(encoding), flush=True)  # noqa: T201
    if reason := failure(sys.stdout):
        raise UserError(f"the output cannot be written: {reason}; send it elsewhere")
