"""The random numbers of one batch, each image's from its own seed, whatever its company."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.diffusion.noise import draw_rows
from sfumato.sampling.request import Request
from sfumato.transfer import to_device


@dataclass(frozen=True)
class Noise:
    """What sampling draws from; tensors are (B, C, H/8, W/8), standard normal.

    Attributes:
        start: what sampling starts from where there is no image.
        image: what an image is noised with.
        rngs: B generators, for the samplers that add noise as they go.
    """

    start: Tensor
    image: Tensor
    rngs: Sequence[torch.Generator]


NoiseSource = Callable[[Sequence[Request], Sequence[int], torch.device], Noise]
"""`source(requests, shape, device)`: the noise of a batch, for images of (C, H/8, W/8)."""


def seeded(requests: Sequence[Request], shape: Sequence[int], device: torch.device) -> Noise:
    """Draw on the CPU, so that the numbers are the same everywhere; an image is noised with the start's."""
    rngs = [torch.Generator().manual_seed(request.seed) for request in requests]
    start = to_device(draw_rows(shape, rngs), device)
    return Noise(start, start, rngs)


def in_order(num_step_draws: Callable[[Request], int], *, is_on_device: bool = False) -> NoiseSource:
    """Return a source that draws as gen_img does: the start, the noises of all steps, that of an image.

    Args:
        num_step_draws: how many noises the sampler of a request draws in all its steps.
        is_on_device: draw where the model computes, as gen_img does. The numbers differ between devices.
    """

    def draw(requests: Sequence[Request], shape: Sequence[int], device: torch.device) -> Noise:
        home = device if is_on_device else torch.device("cpu")
        rngs = [torch.Generator(home).manual_seed(request.seed) for request in requests]
        start = to_device(draw_rows(shape, rngs), device)
        copies = [torch.Generator(home).set_state(rng.get_state()) for rng in rngs]
        for _ in range(num_step_draws(requests[0])):
            draw_rows(shape, copies)
        return Noise(start, to_device(draw_rows(shape, copies), device), rngs)

    return draw
