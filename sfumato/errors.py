"""The exceptions that a person, not a programmer, is meant to read."""


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
