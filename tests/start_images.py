"""A start image and a mask for it, and the public pipelines brought to start from them as ours do."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sfumato.sampling.request import Request
from sfumato.sampling.starts import canvas

STRENGTH = 0.6


def started(request: Request, folder: Path, *, has_mask: bool) -> Request:
    """Return the request with an image of its size to start from, and a mask with a soft border."""
    size = request.height, request.width
    columns, rows = np.meshgrid(np.linspace(0, 255, size[1]), np.linspace(255, 0, size[0]))
    photo = np.stack([columns, rows, np.full(size, 99)], -1).astype(np.uint8)
    Image.fromarray(photo).save(folder / "photo.png")
    white = np.zeros(size, np.uint8)
    white[8:32, 20:] = 255
    Image.fromarray(white).save(folder / "mask.png")
    mask = str(folder / "mask.png") if has_mask else None
    return replace(request, image=str(folder / "photo.png"), mask=mask, strength=STRENGTH)


def as_public(request: Request, pipeline: Any) -> dict[str, Any]:
    """Return the arguments by which a public pipeline starts as the request says.

    Its mask has hard borders, and one value for each pixel of the latents: ours is handed over, enlarged.
    """
    size = {"width": request.width, "height": request.height}
    has_size = size.keys() <= signature(pipeline.__call__).parameters.keys()
    told: dict[str, Any] = size if has_size else {}  # some take the image's
    if request.image is None:
        return told
    told |= {"image": Image.open(request.image), "strength": request.strength}
    if request.mask is None:
        return told
    pipeline.mask_processor.register_to_config(do_binarize=False)
    small = 1 - canvas.kept(
        canvas.canvas_for(request, draws_mask=False), (request.height // 8, request.width // 8)
    )
    return {**told, "mask_image": small.repeat_interleave(8, 2).repeat_interleave(8, 3)}


def encode_without_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have diffusers' autoencoders give the mean of what they draw from."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    def mean(self: Any, generator: torch.Generator | None = None) -> Tensor:
        return self.mean

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", mean)
