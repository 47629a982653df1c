"""Sampling that starts from an image instead of noise, and that keeps a part of one.

Both work on x at noise levels sigma, as samplers do: a family's space says how noise is added there.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sfumato.diffusion.samplers import Revise

Entry = Callable[[int, float], tuple[int, int]]
"""`entry(num_steps, strength)`: the step to whose level an image is noised, and the first that is made."""


def exact_start(num_steps: int, strength: float) -> tuple[int, int]:
    """Return `first_step` twice: an image is noised to the level of the first step that is made."""
    first = first_step(num_steps, strength)
    return first, first


def first_step(num_steps: int, strength: float) -> int:
    """Return the step at which sampling starts from an image, which is noised to that step's level.

    Args:
        strength: share of the steps that is made, in [0, 1]; with 1 the image is hardly seen.

    Returns:
        a number in [0, num_steps]; with `num_steps`, the image stays as it is.
    """
    return num_steps - min(int(num_steps * strength), num_steps)


def earlier_start(num_steps: int, strength: float) -> tuple[int, int]:
    """Return the steps to whose level an image is noised, and from which sampling goes on, in sd-scripts.

    There, one step more is noised for than is made, so that a little noise stays in x. Samplers that ask
    the model twice a step start as `first_step` says.

    Args:
        strength: as `first_step` has it.
    """
    noised_for = num_steps - min(int(num_steps * strength) + 1, num_steps)
    return noised_for, noised_for + 1


def keeping(noised: Callable[[float], Tensor], keep: Tensor) -> Revise:
    """Return what puts a part of an image back after each step, so that only the rest is painted anew.

    Lugmayr et al. 2022 (arXiv:2201.09865), eq. 8, without their repetitions.

    Args:
        noised: returns the image (B, C, H/8, W/8) with the same noise at a level.
        keep: broadcasts to it; 1 keeps, 0 paints anew, and what lies between mixes.
    """

    def revise(x: Tensor, sigma: float) -> Tensor:
        return noised(sigma) * keep + x * (1 - keep)

    return revise
