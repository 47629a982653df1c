"""What enlarges the first stage of an image for its second."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sfumato.data.images import images
from sfumato.sampling.parts.codec import Codec, to_image

Upscale = Callable[[Tensor, tuple[int, int], Codec], Tensor]
"""`upscale(latents, (width, height), codec)`: scaled latents (B, C, H/8, W/8) for a size in pixels.

Whoever enlarges pixels decodes and encodes with the codec.
"""


def enlarge_latents(latents: Tensor, size: tuple[int, int], codec: Codec, *, mode: str) -> Tensor:
    """Interpolate latents; `mode` is bilinear or bicubic."""
    downscale = codec.family.latents.downscale
    small = size[1] // downscale, size[0] // downscale
    return functional.interpolate(latents.float(), small, mode=mode, align_corners=False)


def lanczos(latents: Tensor, size: tuple[int, int], codec: Codec) -> Tensor:
    """Enlarge the images themselves with LANCZOS."""
    pixels = codec.decode(latents).float().cpu()
    return codec.encode(torch.stack([_enlarged(each, size) for each in pixels]))


UPSCALERS: dict[str, Upscale] = {
    "lanczos": lanczos,
    "latent": partial(enlarge_latents, mode="bilinear"),
    "latent-bicubic": partial(enlarge_latents, mode="bicubic"),
}
"""By the names that `Hires.upscaler` has for them."""


def _enlarged(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return pixels (3, height, width) in [-1, 1], by way of an 8-bit image, of pixels (3, h, w)."""
    return images.to_tensor(to_image(pixels).resize(size, Image.Resampling.LANCZOS))
