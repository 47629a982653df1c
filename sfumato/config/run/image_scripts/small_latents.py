"""Work on smaller features or latents while the composition of an image forms."""

from dataclasses import dataclass

from sfumato.config.checks import above, at_least


@dataclass(frozen=True)
class SmallLatentsConfig:
    """Deep shrink and gradual latent."""

    ds_depth_1: int | None = None
    """Deep shrink: block before which features are shrunk, 3 for example; off when not given."""

    ds_timesteps_1: int = 650
    """Timestep down to which features are shrunk there."""

    ds_depth_2: int | None = None
    """Second block before which features are shrunk, from then on."""

    ds_timesteps_2: int = 650
    """Timestep down to which features are shrunk at the second block."""

    ds_ratio: float = 0.5
    """What is left of the sides."""

    gradual_latent_timesteps: int | None = None
    """Gradual latent: timestep from which small latents grow, 650 for example; off when not given."""

    gradual_latent_ratio: float = 0.5
    """Sides of the small latents, as a share."""

    gradual_latent_ratio_step: float = 0.125
    """How much the share grows each time."""

    gradual_latent_every_n_steps: int = 3
    """Steps from one size to the next."""

    gradual_latent_s_noise: float = 1.0
    """Strength of the sampler's noise in the steps that enlarge."""

    gradual_latent_unsharp_params: str | None = None
    """Sharpen what is enlarged: `kernel,sigma,strength`, and perhaps 0 for what goes into the step."""

    def __post_init__(self) -> None:
        above(self, 0, "ds_ratio", "gradual_latent_ratio")
        at_least(self, 1, "gradual_latent_every_n_steps")
