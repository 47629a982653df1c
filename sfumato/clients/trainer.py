"""A trainer of sd-scripts, as programs run it within their own process."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from sfumato.cli.commands import WORK
from sfumato.cli.options.parse import parse
from sfumato.cli.scripts import script_named
from sfumato.cli.start import carry_out

_OF_FILES = ("config_file", "output_config")
"""Options that a program has obeyed before it trains."""


class Trainer:
    """Runs one training script.

    Args:
        script: its name, e.g. "train_network".
    """

    def __init__(self, script: str) -> None:
        self._script = script_named(script)

    def train(self, args: argparse.Namespace) -> None:
        """Train with these options, which are read as tolerantly as those of a configuration file.

        Raises:
            UserError: what is wrong with them, in one line; mostly before any weight is loaded.
        """
        name = f"{self._script.name}.py"
        parsed = parse(self._script, (), prog=name, table=dict(self._given(args)))
        carry_out(parsed, WORK[self._script.command])

    def _given(self, args: argparse.Namespace) -> Iterator[tuple[str, Any]]:
        """Yield what is not as it is anyway; a parser's result holds every default."""
        options = self._script.options()
        for name, value in vars(args).items():
            default = options[name].default if name in options else None
            value = tuple(value) if isinstance(value, list) and isinstance(default, tuple) else value
            if name not in _OF_FILES and value is not None and value != default:
                yield name, list(value) if isinstance(value, tuple) else value
