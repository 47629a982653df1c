"""What a flow model is shown, what it should answer, and how its answer is read.

All tensors are (B, C, H/8, W/8); `sigmas` is (B,), 0 = clean, and broadcasts over the rest.
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


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (B,) so that it broadcasts over the trailing dimensions of `like`, (B, ...)."""
    return values.reshape(-1, *(1 for _ in like.shape[1:]))
