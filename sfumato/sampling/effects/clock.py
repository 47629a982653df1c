"""The timestep at which a denoiser is at work, for what acts inside the model at some of them alone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sfumato.diffusion.samplers import Denoise


class Clock:
    """A guide that notes timesteps as the sampler comes by them.

    What a model is handed lies on the device, and to read it there would make the host wait.
    """

    def __init__(self, timestep_of: Callable[[float], float]) -> None:
        """Take what tells the timestep of a noise level; see `Space.timestep`."""
        self._timestep = 1000.0
        self._timestep_of = timestep_of

    def now(self) -> float:
        """Return the timestep, in [0, 1000], of the step that is made."""
        return self._timestep

    def __call__(self, denoise: Denoise) -> Denoise:
        """Return the same denoiser, which sets the clock whenever it is asked."""

        def timed(x: Tensor, sigma: float) -> Tensor:
            self._timestep = self._timestep_of(sigma)
            return denoise(x, sigma)

        return timed
