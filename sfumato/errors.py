"""The one exception that a person, not a programmer, is meant to read."""


class UserError(Exception):
    """What the user can mend: one line that names the option or file, the value seen and the remedy.

    `sfumato.cli` prints it without a traceback and exits with status 2.
    """
