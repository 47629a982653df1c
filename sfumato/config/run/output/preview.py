"""Images made while a model is trained."""

from dataclasses import dataclass
from typing import Literal

from sfumato.config.rule import given, idle


@dataclass(frozen=True)
class PreviewConfig:
    """Preview images."""

    sample_every_n_steps: int | None = None
    """Make images after every n-th step; 0 is never."""

    sample_at_first: bool = False
    """Make them before the first step too."""

    sample_every_n_epochs: int | None = None
    """Make images after every n-th epoch; wins over `sample_every_n_steps`; 0 is never."""

    sample_prompts: str | None = None
    """File of prompts: text with one a line, TOML or JSON."""

    sample_sampler: Literal[
        "ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsolver++",
        "dpmsingle", "k_lms", "k_euler", "k_euler_a", "k_dpm_2", "k_dpm_2_a",
    ] = "ddim"  # fmt: skip
    """Sampler for families that have a choice."""


RULES = (
    idle(
        ["sample_prompts", "sample_sampler"],
        given("sample_every_n_steps"),
        given("sample_every_n_epochs"),
        given("sample_at_first"),
    ),
)
"""What these options mean to others."""
