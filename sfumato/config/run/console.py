"""What the program says while it works."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ConsoleConfig:
    """Console and log file."""

    console_log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] | None = None
    """Least important kind of message to show; INFO when not given."""

    console_log_file: str | None = None
    """File that receives the messages in place of the console."""

    console_log_simple: bool = False
    """Plain lines without colours or boxes; they are always plain here, so this changes nothing."""
