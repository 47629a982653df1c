"""The channels that a UNet takes: noisy latents and, where it inpaints, a mask and masked latents."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sfumato.models.components.tensor_views import Shapes, TensorView
from sfumato.models.components.unet.unet_names import diffusers_names


def num_taken(shapes: Shapes) -> int:
    """Return how many channels a UNet takes, by the tensors of its file in either naming; 0 if none tells."""
    _, channels, *_ = (*shapes.get(_name_in(shapes, "conv_in.weight"), ()), 0, 0)
    return channels


def num_inpainting(num_latents: int) -> int:
    """Return how many channels an inpainting model takes, for latents of so many channels."""
    return 2 * num_latents + 1


def is_inpainting(shapes: Shapes) -> bool:
    """Return whether a UNet takes a mask and masked latents too."""
    return num_taken(shapes) == num_inpainting(_num_latents(shapes))


def widened(view: TensorView) -> TensorView:
    """Return the tensors of a UNet that inpaints: where it does not, zeros are added to its first layer.

    A UNet that takes something else than latents alone stays as it is.
    """
    first, num = _name_in(view.shapes, "conv_in.weight"), _num_latents(view.shapes)
    if not num or num_taken(view.shapes) != num:
        return view
    width, _, *kernel = view.shapes[first]
    wide = num_inpainting(num)

    def get(name: str) -> Tensor:
        tensor = view.get(name)
        if name != first:
            return tensor
        return torch.cat([tensor, tensor.new_zeros(width, wide - num, *kernel)], dim=1)

    return replace(view, shapes={**view.shapes, first: (width, wide, *kernel)}, get=get)


def _num_latents(shapes: Shapes) -> int:
    return next(iter(shapes.get(_name_in(shapes, "conv_out.weight"), ())), 0)


def _name_in(shapes: Shapes, wanted: str) -> str:
    """Return the file's name of a tensor by its name in diffusers; "" where there is none."""
    names = diffusers_names(shapes)
    return next((old for old, new in names.items() if new == wanted), "")
