"""The exceptions that a person, not a programmer, is meant to read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """What the user can mend: one line that names the option or file, the value seen and the remedy.

    `sfumato.cli` prints it without a traceback and exits with status 2.
    """


class StoppedError(Exception):
    """A signal ended the work early; the message says what was kept and how to go on.

    Attributes:
        status: the exit status that shells and job schedulers know such an end by: 128 + the signal's number.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.status = 128 + signal_number


@contextmanager
def guest_code(
    what: str, remedy: str = "", passes: Callable[[Exception], bool] = lambda _: False
) -> Iterator[None]:
    """Turn whatever others' code raises in the block into one line for the user.

    It may raise anything: only for calls of classes that the user names.

    Args:
        what: what ran or failed, with the option that named it; the message begins with it.
        remedy: what the user can do; the message ends with it.
        passes: whether an error is none of that code's and goes on as it is.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a program that is imported by mistake ends the process
        if isinstance(error, Exception) and passes(error):
            raise
        text = " ".join(str(error).split())[:_MOST_CHARACTERS]
        reason = ": ".join(filter(None, [type(error).__name__, text]))
        raise UserError(f"{what}: {reason}{remedy and f'; {remedy}'}") from error


_MOST_CHARACTERS = 300
"""Of what an error says: a list of all tensors of a file is no line."""
