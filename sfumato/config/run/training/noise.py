"""What is added to latents, and how much of it."""

from dataclasses import dataclass
from typing import Literal

from sfumato.config.checks import at_least, between, sides
from sfumato.config.rule import Values, given, idle, needs


@dataclass(frozen=True)
class NoiseConfig:
    """Noise and timesteps."""

    noise_offset: float | None = None
    """Strength of a constant added to each channel's noise, about 0.1: darker and brighter images."""

    noise_offset_random_strength: bool = False
    """Draw the offset's strength anew between 0 and `noise_offset`."""

    multires_noise_iterations: int | None = None
    """Number of coarser noises added to the noise, about 6 to 10."""

    multires_noise_discount: float = 0.3
    """How much weaker each coarser noise is, 0 to 1."""

    ip_noise_gamma: float | None = None
    """Strength of a second noise on the model's input alone, about 0.1; makes sampling errors matter less."""

    ip_noise_gamma_random_strength: bool = False
    """Draw that strength anew between 0 and `ip_noise_gamma`."""

    adaptive_noise_scale: float | None = None
    """Added to `noise_offset` in proportion to the image's own mean brightness. Needs `noise_offset`."""

    zero_terminal_snr: bool = False
    """Rescale the noise schedule so that its last step is pure noise."""

    min_timestep: int | None = None
    """Smallest timestep that is trained, 0 to 999; 0 is almost clean."""

    max_timestep: int | None = None
    """Timesteps below this one are trained, 1 to 1000; 1000 is pure noise."""

    show_timesteps: Literal["console", "image"] | None = None
    """Show how often this run would draw each timestep, and how it weighs them, as text or as an image
    (`timesteps.png` in `output_dir`); then stop without training."""

    show_timesteps_resolution: str = "1024"
    """Size in pixels, `1024` or `width,height`, that timesteps are drawn for where they depend on it."""

    def __post_init__(self) -> None:
        sides("show_timesteps_resolution", self.show_timesteps_resolution)
        between(self, 0, 999, "min_timestep")
        between(self, 1, 1000, "max_timestep")
        at_least(self, 0, "multires_noise_iterations")


def _are_timesteps_in_order(values: Values) -> bool:
    low, high = values["min_timestep"], values["max_timestep"]
    return low < (1000 if high is None else high)


RULES = (
    needs(["adaptive_noise_scale"], given("noise_offset")),
    needs(["min_timestep"], reason="a value below --max_timestep", unless=_are_timesteps_in_order),
    idle(["show_timesteps_resolution"], given("show_timesteps")),
    idle(["noise_offset_random_strength"], given("noise_offset")),
    idle(["multires_noise_discount"], given("multires_noise_iterations")),
    idle(["ip_noise_gamma_random_strength"], given("ip_noise_gamma")),
)
"""What these options mean to others."""
