"""Import diffusers and transformers without what they load in passing and nothing here uses.

Both look which packages are installed and import them at once, in case a model needs them later. The models
here never do, and it takes a third of the time before the first step. What was found stays settled for the
process, so this is for processes of our own: where sfumato is a library in somebody's program, nothing is
hidden.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EXTRAS = ("bitsandbytes", "peft", "scipy", "sklearn")
"""Quantisers, adapters, and losses and decoding of models that have no part in image generation."""

_owned = False


def own_process() -> None:
    """Say that this process runs one command of sfumato and nothing else."""
    global _owned
    _owned = True


@contextmanager
def lean() -> Iterator[None]:
    """Hide the extras while diffusers or transformers are imported for the first time.

    Whoever imports an extra afterwards gets it.
    """
    hidden = [name for name in EXTRAS if name not in sys.modules] if _owned else []
    absent: Any = dict.fromkeys(hidden)  # to None, which Python takes for "cannot be imported"
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
