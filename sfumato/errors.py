"""The exceptions that a person, not a programmer, is meant to read."""

from collections.abc import Iterator
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
def guest_code(what: str) -> Iterator[None]:
    """Turn whatever others' code raises in the block into one line for the user.

    It may raise anything: only for calls of classes that the user names.

    Args:
        what: what ran or failed, with the option that named it; the message begins with it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from error
