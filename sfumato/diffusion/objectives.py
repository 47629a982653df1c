"""What a model is shown, what it should answer, and how its answer is read.

All tensors are (B, C, H/8, W/8); `sigmas` is (B,), 0 = clean, and broadcasts over the rest. For discrete-time
models `kept` is alpha_bar, (B,), 1 = clean; see `diffusion/schedules.py`.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Interpretation = Literal["raw", "additive", "sigma_scaled"]


def flow_noisy(latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Mix latents and noise along the straight path: `(1 - sigma) * latents + sigma * noise`."""
    level = per_sample(sigmas, latents)
    return (1 - level) * latents + level * noise


def flow_target(latents: Tensor, noise: Tensor) -> Tensor:
    """Return the path's velocity, `noise - latents`, which is the same at every level."""
    return noise - latents


def flow_interpret(output: Tensor, noisy: Tensor, sigmas: Tensor, how: Interpretation) -> Tensor:
    """Turn the model's raw output into what the loss compares with the target.

    Args:
        output, noisy: the model's answer and what it was shown.
        how: `raw` takes the output as it is, `additive` adds the noisy input, and `sigma_scaled` computes
            what `flow_clean` does.
    """
    if how == "additive":
        return output + noisy
    if how == "sigma_scaled":
        return flow_clean(output, noisy, sigmas)
    return output


def flow_clean(output: Tensor, noisy: Tensor, sigmas: Tensor) -> Tensor:
    """Return the clean latents that a velocity points to: `noisy - sigma * velocity`."""
    return noisy - per_sample(sigmas, noisy) * output


def ddpm_noisy(latents: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """Mix latents and noise at constant variance: `sqrt(a) * latents + sqrt(1 - a) * noise`."""
    level = per_sample(kept, latents)
    return level.sqrt() * latents + (1 - level).sqrt() * noise


def ddpm_velocity(latents: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """Return `sqrt(a) * noise - sqrt(1 - a) * latents` (Salimans & Ho 2022, arXiv:2202.00512, appendix D)."""
    level = per_sample(kept, latents)
    return level.sqrt() * noise - (1 - level).sqrt() * latents


def clean_from_noise(predicted: Tensor, x: Tensor, sigma: float) -> Tensor:
    """Return the clean latents that a noise prediction points to: `x - sigma * predicted`.

    Args:
        x: latents with noise of standard deviation sigma added, not rescaled.
    """
    return x - sigma * predicted


def clean_from_velocity(predicted: Tensor, x: Tensor, sigma: float) -> Tensor:
    """Return the clean latents that a velocity prediction of a discrete-time model points to.

    Args:
        x: as in `clean_from_noise`; with a = 1 / (1 + sigma^2) the result is
            `a * x - sqrt(1 - a) * predicted`.
    """
    kept = 1 / (1 + sigma**2)
    return kept * x - sigma * kept**0.5 * predicted


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (B,) so that it broadcasts over the trailing dimensions of `like`, (B, ...)."""
    return values.reshape(-1, *(1 for _ in like.shape[1:]))
