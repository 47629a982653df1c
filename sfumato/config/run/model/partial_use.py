"""Whether an adapter file may be used in part."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PartialUseConfig:
    """Adapter files that do not fit wholly."""

    allow_partial: bool = False
    """Go on where layers of an adapter file have no place in the model, and leave them out."""
