"""Options that only SDXL has."""

from dataclasses import dataclass

from sfumato.config.rule import given, idle


@dataclass(frozen=True)
class SecondPromptOptions:
    """The second text encoder."""

    prompt2: str | None = None
    """What the second text encoder reads; the prompt when not given."""


RULES = (idle(["prompt2"], among=(given("interactive"),)),)
"""What these options mean to others."""
