"""Upscalers from modules that a user names, as sd-scripts loads them: `create_upscaler(**arguments)`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from sfumato.data.images import images
from sfumato.errors import guest_code
from sfumato.models.interface.family import VAE
from sfumato.sampling.hires.upscaling import Upscale
from sfumato.sampling.parts.codec import Codec, to_image

_OURS = {"tools.latent_upscaler": "sfumato.sampling.hires.latent_upscaler"}


class Upscaler(Protocol):
    """What a module's `create_upscaler` returns; names and order of arguments are sd-scripts'."""

    def to(self, target: Any) -> Upscaler:
        """Move it to a device or a dtype; return it."""
        ...

    def support_latents(self) -> bool:
        """Return whether it enlarges latents; otherwise it is given images."""
        ...

    def upscale(
        self,
        vae: nn.Module,
        images: Sequence[Image.Image] | None,
        latents: Tensor | None,
        dtype: torch.dtype,
        width: int,
        height: int,
        batch_size: int,
        vae_batch_size: int,
    ) -> Tensor | Sequence[Image.Image]:
        """Return scaled latents, or images, for a size in pixels."""
        ...


def upscaler_from(module: str, arguments: Mapping[str, str], option: str = "the upscaler") -> Upscale:
    """Return what enlarges by the upscaler of a module, which is imported and made now.

    Args:
        module: its name, e.g. `tools.latent_upscaler`; it may lie in the working directory.
        arguments: for its `create_upscaler`.
        option: what named it, for messages.

    Raises:
        UserError: the module cannot be imported, or makes no upscaler.
    """
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    with guest_code(f"{option} {module}", "check the module's name and arguments"):
        made: Upscaler = importlib.import_module(_OURS.get(module, module)).create_upscaler(**arguments)

    def upscale(latents: Tensor, size: tuple[int, int], codec: Codec) -> Tensor:
        with guest_code(f"{option} {module}", "its code is not part of this program"):
            found = _enlarged(made, latents, size, codec)
        return found if isinstance(found, torch.Tensor) else _encoded(found, codec)

    return upscale


def _enlarged(
    upscaler: Upscaler, latents: Tensor, size: tuple[int, int], codec: Codec
) -> Tensor | Sequence[Image.Image]:
    upscaler = upscaler.to(latents.dtype).to(latents.device)
    given = upscaler.support_latents()
    pictures = None if given else [to_image(pixels) for pixels in codec.decode(latents)]
    batch = len(latents), codec.batch_size

    def run(vae: nn.Module) -> Tensor | Sequence[Image.Image]:
        return upscaler.upscale(vae, pictures, latents if given else None, latents.dtype, *size, *batch)

    return codec.runner.run(VAE, run)


def _encoded(pictures: Sequence[Image.Image], codec: Codec) -> Tensor:
    return codec.encode(torch.stack([images.to_tensor(picture.convert("RGB")) for picture in pictures]))
