"""What programs that rework adapter files ask of sd-scripts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def is_safetensors(path: str) -> bool:
    """Return whether a file's suffix says that it is safetensors."""
    return Path(path).suffix.lower() == ".safetensors"


def precalculate_safetensors_hashes(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[str, str]:
    """Return the values of `sshs_model_hash` and `sshs_legacy_hash` for an adapter file."""
    from sfumato.checkpoints.hashes import adapter_hashes  # torch

    hashes = adapter_hashes(tensors, metadata)
    return hashes["sshs_model_hash"], hashes["sshs_legacy_hash"]


def setup_logging(args: object = None, log_level: str | None = None, reset: bool = False) -> None:
    """Show the messages of a program on standard error, unless it has seen to that itself.

    Args:
        args: not used; sd-scripts reads options of the console from it.
        log_level: a name of `logging`'s levels; INFO where None.
        reset: set it up anew.
    """
    logging.basicConfig(
        level=log_level or "INFO",
        format="%(asctime)s %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
        force=reset,
    )
