"""How images are sampled: sampler, steps, guidance, and the noise they start from."""

from dataclasses import dataclass, field
from typing import Literal

from sfumato.config.checks import at_least, between
from sfumato.config.rule import given, idle, needs

SamplerName = Literal[
    "ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsolver++",
    "dpmsingle", "k_lms", "k_euler", "k_euler_a", "k_dpm_2", "k_dpm_2_a",
]  # fmt: skip
"""`k_euler` is `euler`, and so are the others."""


@dataclass(frozen=True)
class StepConfig:
    """Sampling."""

    steps: int = 50
    """Steps of the sampler."""

    sampler: SamplerName = "ddim"
    """Name of the sampler."""

    scale: float = 7.5
    """Strength of classifier-free guidance; up to 1 it is off."""

    negative_scale: float | None = None
    """Lead away from the negative prompt by a scale of its own; it then computes every step three times."""

    zero_terminal_snr: bool = False
    """Sample on a noise schedule that ends in pure noise, for models that were trained on one."""

    force_scheduler_zero_steps_offset: bool = False
    """Change given images in one step more, as if the timesteps of the schedule began at 0."""

    device_noise: bool = False
    """Draw noise on the device, as sd-scripts does: other images on other devices. Otherwise a seed makes the
    same noise on every device."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps")


@dataclass(frozen=True)
class StartNoiseConfig:
    """Noise that images start from."""

    pyramid_noise_prob: float | None = None
    """Share of the images that start from noise of several sizes, from 0 to 1."""

    pyramid_noise_discount_range: tuple[float, ...] | None = field(default=None, metadata={"count": 2})
    """How much each larger size counts: drawn between these two numbers for each image."""

    noise_offset_prob: float | None = None
    """Share of the images whose start noise is shifted as a whole, from 0 to 1."""

    noise_offset_range: tuple[float, ...] | None = field(default=None, metadata={"count": 2})
    """How far it is shifted: a random number times the width of this range, added to its beginning."""

    def __post_init__(self) -> None:
        between(self, 0, 1, "pyramid_noise_prob", "noise_offset_prob")


RULES = (
    idle(["pyramid_noise_discount_range"], given("pyramid_noise_prob")),
    needs(["pyramid_noise_prob"], given("pyramid_noise_discount_range")),
    idle(["noise_offset_range"], given("noise_offset_prob")),
    needs(["noise_offset_prob"], given("noise_offset_range")),
)
"""What these options mean to others."""
