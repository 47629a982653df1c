"""What the denoiser is told of the images of one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor

from sfumato.models.interface.conditioning import Conditioning, ImageSizes, inpainting, masked
from sfumato.sampling.encoding import Text
from sfumato.sampling.parts.codec import Codec
from sfumato.sampling.request import Request
from sfumato.sampling.settings.sizes import SizeConditions
from sfumato.sampling.starts.canvas import Canvas


def conditioning_for(
    requests: Sequence[Request],
    texts: Mapping[str, Text],
    control: Mapping[str, Tensor],
    device: torch.device,
) -> Conditioning:
    """Return what to tell the denoiser: all prompts and, where they guide, all negative prompts ...

    Args:
        control: what else steers the model, of one row for each image.
    """
    passes = list(zip(*(request.passes() for request in requests), strict=True))
    rows = [texts[prompt] for prompts in passes for prompt in prompts]
    text = {name: torch.cat([row[name] for row in rows]).to(device) for name in rows[0]}
    guidance = torch.tensor([request.guidance for request in requests] * len(passes), device=device)
    repeated = {name: torch.cat([value] * len(passes)) for name, value in control.items()}
    return Conditioning(text, guidance, _sizes(requests, len(passes), device), repeated)


def canvas_control(canvases: Sequence[Canvas], codec: Codec) -> dict[str, Tensor]:
    """Return what an inpainting model is told of its canvases; see `conditioning.inpainting`."""
    masks = torch.cat([each.repainted for each in canvases])
    shown = masked(torch.cat([each.pixels for each in canvases]), masks)
    latents = codec.encode(shown)
    return inpainting(masks.to(latents.device), latents)


def _sizes(requests: Sequence[Request], num_passes: int, device: torch.device) -> ImageSizes:
    """Tell the model how each image is framed: as large as asked for, and whole, if nothing is said."""
    said = [request.sizes or SizeConditions() for request in requests]
    target = torch.tensor([(request.height, request.width) for request in requests], device=device)
    crop = torch.tensor([(each.crop_top or 0, each.crop_left or 0) for each in said], device=device)
    wanted = torch.tensor([_original(*each) for each in zip(requests, said, strict=True)], device=device)
    unwanted = torch.tensor([_negative(*each) for each in zip(requests, said, strict=True)], device=device)
    original = torch.cat([wanted, *islice((unwanted, unwanted), num_passes - 1)])
    return ImageSizes(original, crop.repeat(num_passes, 1), target.repeat(num_passes, 1))


def _original(request: Request, said: SizeConditions) -> tuple[int, int]:
    return said.original_height or request.height, said.original_width or request.width


def _negative(request: Request, said: SizeConditions) -> tuple[int, int]:
    height, width = _original(request, said)
    return said.original_height_negative or height, said.original_width_negative or width
