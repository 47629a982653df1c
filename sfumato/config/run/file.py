"""Options that are read from or written to a file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FileConfig:
    """Configuration file."""

    config_file: str | None = None
    """TOML file of options, its suffix may be left out. What the command line says wins."""

    output_config: bool = False
    """Write the options given here into `config_file` and stop."""

    strict: bool = False
    """Treat as errors what otherwise only warns: unknown keys in files, options without effect."""
