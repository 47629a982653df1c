"""Settings of gradual latents."""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.errors import UserError


@dataclass(frozen=True)
class UnsharpMask:
    """Sharpen what was enlarged.

    Attributes:
        kernel: width of the blur in latent pixels, odd.
        sigma: of the blur.
        strength: of what is added.
        after_step: sharpen the result of a sampler's step instead of what goes into it.
    """

    kernel: int
    sigma: float
    strength: float
    after_step: bool = True

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise UserError(f"the kernel of gradual latent's sharpening is {self.kernel}; use an odd number")
        if self.sigma <= 0:
            raise UserError(f"the sigma of gradual latent's sharpening is {self.sigma}; use one above 0")


@dataclass(frozen=True)
class GradualLatent:
    """Begin with small latents, and enlarge them while the image forms.

    Attributes:
        timesteps: from which latents grow, in [0, 1000).
        ratio: of the sides at the start.
        every_n_steps: steps from one size to the next.
        ratio_step: what is added to the ratio.
        s_noise: strength of the sampler's noise when the size changes.
        unsharp: None leaves enlarged latents as they are.
    """

    timesteps: int = 650
    ratio: float = 0.5
    every_n_steps: int = 3
    ratio_step: float = 0.125
    s_noise: float = 1.0
    unsharp: UnsharpMask | None = None

    def __post_init__(self) -> None:
        if self.ratio <= 0:
            raise UserError(f"gradual latent's ratio is {self.ratio}; use a number above 0, as 0.5")
